"""The recipes' page: its commands are ones that `jaxgen` takes, in their order; its code runs."""

import doctest
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.cli import main
from jaxgen.run import record
from jaxgen.run.setup import TOP, abstract_batch, set_up
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.log import say
from tests.nn_kit import quick_jit
from tests.toy_diffusion import build, data

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
NARROW = [
    f"--config.{change}"
    for change in (
        *("model.width=16", "data.batch_size=16", "train.images=32", "train.sample_every=0"),
        *("evaluate.at_end=False", "classify.at_end=False"),
    )
]
LIMITS = {
    "families/diffusion/terms/alignment": 60,
    "distill/guidance": 120,
    "tune/lora": 100,
    "nn/uvit": 120,
    "nn/long_skips": 120,
    "families/energy/method": 120,
    "unlearn/forget": 80,
}


def commands() -> list[list[str]]:
    """Every `jaxgen train` of the page, as a shell would split it."""
    found, names = [], {}
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").replace("\n     ", " ").splitlines():
            if re.match(r"\w+='", line):
                name, _, value = line.partition("=")
                names[f'"${name}"'] = value
                continue
            for name, value in names.items():
                line = line.replace(name, value)
            found.append(shlex.split(line))
    return [c for c in found if c[:2] == ["jaxgen", "train"]]


def written(config, workdir: Path) -> None:
    """A workdir as training leaves it, without training."""
    parts = set_up(config)
    with Checkpoints(workdir, say=say) as checkpoints:
        checkpoints.save(1, quick_jit(parts.method.init)(jax.random.key(0)), {}, wait=True)
    record.save(workdir, parts)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which `runs/digits`, with a classifier, and `runs/guided` are."""
    from jaxgen.metrics.extractors.classifier import Training, cached

    root = tmp_path_factory.mktemp("page")
    (root / "runs").mkdir()
    for name in ("configs", "tests"):
        (root / name).symlink_to(Path(name).resolve())
    images = np.zeros((64, 8, 8, 1), np.uint8)
    digits = root / "runs" / "digits"
    cached(digits / "classifier.safetensors", images, np.arange(64) % 10, 10, Training(epochs=1))
    loaded = configs.load("configs/digits.py")
    configs.override(loaded, [a.removeprefix("--config.") for a in NARROW], TOP)
    written(loaded, digits)
    configs.override(loaded, ["model.conditions=(('w', 'number'),)"], TOP)
    written(loaded, root / "runs" / "guided")
    return root


def test_the_page_has_six_recipes_within_their_lines():
    assert len(re.findall(r"^## \d\. ", PAGE, re.MULTILINE)) == 6
    for name, most in LIMITS.items():
        file = f"jaxgen/{name}.py"
        assert f"`{file}`" in PAGE and len(Path(file).read_text().splitlines()) <= most, file


@pytest.mark.parametrize("command", commands(), ids=lambda c: c[5])
def test_a_command_of_the_page_builds_its_update(command, place, monkeypatch):
    monkeypatch.chdir(place)
    loaded = configs.load(command[3])
    changes = [a.removeprefix("--config.") for a in command[6:] + NARROW[:2] if "=" in a]
    configs.override(loaded, changes, TOP)
    parts = set_up(loaded)
    state = jax.eval_shape(parts.method.init, jax.random.key(0))
    batch = {**abstract_batch(parts), "image": jnp.zeros((16, 8, 8, 1))}
    batch["label"] = jnp.zeros(16, jnp.int32)
    update = parts.method.update
    more = (parts.method.frozen,) if parts.method.frozen else ()
    after, _ = jax.eval_shape(update, state, batch, jax.random.key(0), *more)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_the_commands_of_the_page_train_in_their_order(place, monkeypatch):
    """All of them for two steps, then the sample that stage two ends in."""
    monkeypatch.chdir(place)
    for command in commands():
        workdir = str(place / "new" / Path(command[5]).name)
        assert main([*command[1:4], "--workdir", workdir, *command[6:], *NARROW]) == 0, command
    base = [
        "sample",
        "--workdir",
        str(place / "new" / "fast"),
        "--labels",
        "0-9",
        "--guidance",
        "2",
    ]
    assert main([*base, "--solver", "ddim", "--steps", "1", "--out", str(place / "x.png")]) == 0


def test_the_wrap_of_the_page_does_what_it_says():
    runner, scope = doctest.DocTestRunner(), {}
    test = doctest.DocTestParser().get_doctest(PAGE, scope, "extending.md", None, 0)
    assert test.examples and not runner.run(test, clear_globs=False).failed
    method = build(1e-3)
    params = method.init(jax.random.key(0)).params
    given = {**data(jax.random.key(1)), "index": jnp.arange(128), "microbatch": jnp.int32(0)}

    def loss(m):
        return float(m.loss(params, given, jax.random.key(2), {"times": ()})[0])

    quieter = test.globs["quieter"]
    whole, without = loss(method), loss(quieter(method, label=0, weight=0.0))
    half = loss(quieter(method, label=0))
    np.testing.assert_allclose(half, (whole + without) / 2, rtol=1e-5)
    assert without < whole
