"""Other workdirs' models in a sampler: T-Stitch and autoguidance from the command line."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.cli import main
from jaxgen.errors import UsageError
from jaxgen.run.model import load
from jaxgen.run.others import branch
from jaxgen.run.setup import set_up
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.log import say
from tests import tiny
from tests.nn_kit import quick_jit

STEPS = 5


def write(workdir: Path, width: int, *overrides: str) -> str:
    """A workdir with a checkpoint of random parameters: an untrained network says 0."""
    config = tiny.get_config()
    config.model = dict(name="mlp.MLP", width=width, depth=1)
    config.ema = dict(half_life=(500,))
    configs.override(config, overrides)
    parts = set_up(config)
    state = quick_jit(parts.method.init)(jax.random.key(width))
    live = jax.tree.map(
        lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size + width), a.shape), state.params
    )
    state = state.replace(params=live, ema={name: live for name in state.ema})
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    with Checkpoints(workdir, say=say) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
    return str(workdir)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "large": write(root / "large", 24),
        "small": write(root / "small", 8),
        "elsewhere": write(root / "elsewhere", 8, "method.path=cosine"),
    }


def sample(out: Path, workdir: str, *options: str, capsys) -> tuple[np.ndarray, float]:
    """(images, network calls of each) by the command line."""
    file = str(out / "x.npz")
    base = ["sample", "--workdir", workdir, "--labels", "3:4", "--steps", str(STEPS), "--json"]
    assert main([*base, "--out", file, *options]) == 0
    return np.load(file)["images"], json.loads(capsys.readouterr().out)["network_calls"]


def stitched(small: object, share: float) -> list[str]:
    section = {"name": "stitch.early", "models": [["small", share]]}
    return [f"--sample.models={ {'small': small} }", f"--sample.guidance=[{section}]"]


def test_stitched_ends_are_one_model_bit_for_bit(runs, tmp_path, capsys):
    seen = {}
    for name, workdir, options in (
        ("large", runs["large"], ["--guidance", "1"]),
        ("small", runs["small"], ["--guidance", "1"]),
        *((share, runs["large"], stitched(runs["small"], share)) for share in (0.0, 0.4, 1.0)),
    ):
        seen[name] = sample(tmp_path, workdir, *options, capsys=capsys)
    assert {calls for _, calls in seen.values()} == {STEPS}
    np.testing.assert_array_equal(seen[0.0][0], seen["large"][0])
    np.testing.assert_array_equal(seen[1.0][0], seen["small"][0])
    for end in ("large", "small"):
        assert np.abs(seen[0.4][0] - seen[end][0]).max() > 1e-3


def test_the_small_model_has_guidance_of_its_own(runs, tmp_path, capsys):
    plain, _ = sample(tmp_path, runs["small"], "--guidance", "3", capsys=capsys)
    section = {"workdir": runs["small"], "guidance": 3.0}
    found, calls = sample(tmp_path, runs["large"], *stitched(section, 1.0), capsys=capsys)
    np.testing.assert_array_equal(found, plain)
    # Two calls in each of the small model's 2 steps, one in each of the large one's.
    _, calls = sample(tmp_path, runs["large"], *stitched(section, 0.4), capsys=capsys)
    assert calls == 2 * 2 + 3


def test_autoguidance_by_a_smaller_network(runs, tmp_path, capsys):
    models = [f"--sample.models={ {'weak': runs['small']} }"]
    images = {}
    for weight in (0.0, 0.5, 1.0, 3.0):
        section = {"name": "autoguidance.autoguidance", "weight": weight}
        options = [*models, f"--sample.guidance=[{section}]", "--sample.steps=1"]
        images[weight], _ = sample(tmp_path, runs["large"], *options, capsys=capsys)
    alone, _ = sample(tmp_path, runs["small"], "--guidance", "1", "--sample.steps=1", capsys=capsys)
    np.testing.assert_array_equal(images[0.0], alone)
    # One step of Euler's is linear in the velocity, and so is guidance.
    line = images[0.0] + 3 * (images[1.0] - images[0.0])
    np.testing.assert_allclose(images[3.0], line, atol=1e-4)
    assert np.abs(images[1.0] - images[0.0]).max() > 1e-2


def test_parameters_of_another_model_are_an_argument(runs):
    model = load(runs["large"])
    options = {"models": {"small": runs["small"]}, "guidance": [dict(name="stitch.early")]}
    model.sample([3], **options)
    (sampler, program), weights = model.program(model.sample([3], **options).options), {}
    del sampler
    other = load(runs["small"]).weights(None)
    keys, labels = jax.random.split(jax.random.key(0), 1), np.array([3], np.int32)
    for scale in (1.0, 0.0):
        small = jax.tree.map(lambda a, scale=scale: scale * a, other)
        params = {**model.weights(None), "models": {"small": small}}
        weights[scale] = np.asarray(program(params, keys, labels))
    assert np.abs(weights[1.0] - weights[0.0]).max() > 1e-3


def test_models_that_do_not_fit_are_told(runs, capsys):
    for models, words in (
        ("{'small': 3}", "a workdir, or a section"),
        ("{}", "sample.models: got"),
        ("3", "sample.models: got"),
        ("{'small': {'workdir': 'w', 'steps': 3}}", "sample.models.small"),
        ("{'small': 'nowhere'}", "nowhere"),
        (str({"small": runs["elsewhere"]}), "noise levels"),
        (str({"small": {"workdir": runs["small"], "ema": "none"}}), "--ema"),
    ):
        arguments = ["sample", "--workdir", runs["large"], f"--sample.models={models}"]
        section = "[{'name': 'stitch.early'}]"
        assert main([*arguments, f"--sample.guidance={section}"]) == 2, models
        assert words in capsys.readouterr().err, models


def test_other_examples_and_other_families_are_refused(runs):
    parts = load(runs["large"]).setup
    wider = dataclasses.replace(parts, spec=dataclasses.replace(parts.spec, shape=(9, 9, 1)))
    bare = dataclasses.replace(parts, method=dataclasses.replace(parts.method, sampler=None))
    for other, words in ((wider, "shape"), (bare, "diffusion models")):
        with pytest.raises(UsageError, match=words):
            branch(parts, other, "small", {"workdir": "runs/small"}, {})
