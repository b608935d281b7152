"""`sample.steer`: the same steering for any family, from a config; rewards by name."""

import re
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from jaxgen.cli import main
from jaxgen.config import ROOMS, build
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import build_sampler
from jaxgen.families.discrete import sampler as discrete
from jaxgen.method import Sampler, normal
from jaxgen.method.chain import Chain, Reward, Steered
from jaxgen.metrics.extractors.classifier import ConvNet
from jaxgen.run.setup import make_sampler, sample_options, set_up
from jaxgen.steer.sampler import steered
from jaxgen.steer.search import branch
from jaxgen.testing import gaussian_denoiser
from tests import tiny
from tests.discrete_kit import exact_core

STATES = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1]])
KEYS = jax.random.split(jax.random.key(5), 6)
LABELS = jnp.arange(6, dtype=jnp.int32) % 3
PATH = linear()
NET = {"net": {}}
HERE = "tests.steer.test_steer_config"


def right(*, sign: float = 1.0):
    """A reward that knows its label: near (2 label, 2 label)."""

    def reward(x, labels):
        far = x.reshape(len(x), -1).astype(jnp.float32) - 2.0 * labels[:, None]
        return -sign * (far**2).sum(1)

    return reward


REWARD = {"name": f"{HERE}.right"}


def of_diffusion(eta: float = 1.0) -> Sampler:
    """Three classes N(label, .5^2) in the plane by their exact denoisers."""

    def cond(params, labels):
        mean = 0.0 if labels is None else labels[:, None].astype(jnp.float32)
        return gaussian_denoiser(PATH, mean, 0.5)

    return build_sampler(
        PATH, (2,), {"cond": cond}, solver={"name": "ddim", "eta": eta}, steps=4, grid="uniform",
        guidance=(), clip="none",
    )  # fmt: skip


def of_tokens() -> Sampler:
    core = exact_core(STATES)
    return discrete.build_sampler(
        core, solver="random", steps=3, schedule=core.schedule, temperature=1.0,
        final_temperature=None, choice_temperature=0.0, guidance=1.0,
        guidance_schedule="constant", guided=False,
    )  # fmt: skip


def of_one_call() -> Sampler:
    return Sampler(lambda params, keys, labels: normal(keys, (2,)) + labels[:, None], calls=1.0)


SAMPLERS = {"diffusion": of_diffusion, "discrete": of_tokens, "one call": of_one_call}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_best_of_one_is_the_sampler_and_of_four_the_best_of_what_it_drew(make):
    sampler = make()
    plain = jax.jit(sampler.fn)
    one = steered(sampler, {"name": "search.best_of", "count": 1, "reward": REWARD})
    np.testing.assert_array_equal(jax.jit(one.fn)(NET, KEYS, LABELS), plain(NET, KEYS, LABELS))
    assert one.calls == sampler.calls and one.steps == sampler.steps

    four = steered(sampler, {"name": "search.best_of", "count": 4, "reward": REWARD})
    assert four.calls == 4 * sampler.calls
    drawn = [plain(NET, branch(KEYS, n), LABELS) for n in range(4)]
    scores = np.stack([right()(x, LABELS) for x in drawn])
    found = right()(jax.jit(four.fn)(NET, KEYS, LABELS), LABELS)
    np.testing.assert_allclose(found, scores.max(0), atol=1e-4)
    # Image i is its own key's and label's alone.
    alone = jax.jit(four.fn)(NET, KEYS[4:], LABELS[4:])
    np.testing.assert_allclose(right()(alone, LABELS[4:]), scores.max(0)[4:], atol=1e-4)


WAYS = {
    "search.zero_order": dict(rounds=1, neighbours=3, radius=0.9),
    "svdd.svdd": dict(proposals=3, alpha=0.1),
    "paths.over_paths": dict(width=1, branches=3, start=2, stride=1, back=1),
    "tree.tree_search": dict(budget=16),
    "tree.tree_sampling": dict(budget=16, strength=2.0),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_takes_each_image_to_its_own_label(name):
    # Ancestral steps to the exact mean forget the noise that zero-order search would choose.
    sampler = of_diffusion(eta=0.0 if name == "search.zero_order" else 1.0)
    keys = jax.random.split(jax.random.key(1), 60)
    labels = jnp.arange(60, dtype=jnp.int32) % 3
    section = {"name": name, **WAYS[name], "reward": REWARD}
    with_it, against = (
        np.asarray(right()(jax.jit(steered(sampler, s).fn)(None, keys, labels), labels))
        for s in (section, {**section, "reward": {**REWARD, "sign": -1.0}})
    )
    plain = np.asarray(right()(jax.jit(sampler.fn)(None, keys, labels), labels))
    # Rewards of one sample spread by 2 to 12; of 60, paired by key, far less than the steering.
    assert with_it.mean() > plain.mean() + 0.3 and against.mean() < plain.mean() - 0.3


def table() -> list[str]:
    """The sections in the first table of docs/steering.md."""
    text = Path("docs/steering.md").read_text()
    rows = text.split("| `config.sample.steer`")[1].split("\n\n")[0]
    return re.findall(r"^\| `(dict\(.*?\))`", rows, re.MULTILINE)


@pytest.mark.parametrize("line", table())
def test_every_line_of_the_docs_runs(line):
    section = eval(line, {"dict": dict})
    name, options = section.pop("name"), section
    eta = 0.0 if name == "search.zero_order" else 1.0
    plain, with_it = (
        of_diffusion(eta),
        steered(of_diffusion(eta), {"name": name, **options, "reward": REWARD}),
    )
    assert with_it.calls > plain.calls and with_it.steps == plain.steps
    assert jax.eval_shape(with_it.fn, None, KEYS, LABELS).shape == (len(KEYS), 2)


def better(chain: Chain, reward: Reward) -> Steered:
    """docs/steering.md's own steering."""
    source = Path("docs/steering.md").read_text().split("# my_steering.py")[1].split("```")[0]
    space: dict[str, Any] = {}
    exec(source.split("\n", 1)[1], space)
    return space["better"](chain, reward)


def test_the_docs_own_steering_is_best_of_two():
    sampler = of_diffusion()
    best = steered(sampler, {"name": "search.best_of", "count": 2, "reward": REWARD})
    own = steered(sampler, {"name": f"{HERE}.better", "reward": REWARD})
    assert own.calls == best.calls
    found, want = (jax.jit(s.fn)(NET, KEYS, LABELS) for s in (own, best))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_config_may_steer_and_the_command_line_too(capsys):
    config = tiny.get_config()
    config.sample.steer = {"name": "search.best_of", "count": 2, "reward": REWARD}
    parts = set_up(config)
    options = sample_options(parts, {"steps": 2})
    assert (
        make_sampler(parts, options).calls
        == 2 * make_sampler(parts, {k: v for k, v in options.items() if k != "steer"}).calls
    )
    config.sample.steer.cuont = 2
    with pytest.raises(UsageError, match="sample.steer.cuont.*count"):
        set_up(ml_collections.ConfigDict(config))
    flag = "--config.sample={'steps': 2, 'steer': {'name': 'search.best_of'}}"
    assert main(["train", "--config", "tests/tiny.py", "--workdir", "nowhere", flag]) == 2
    assert "a reward" in capsys.readouterr().err


def test_bad_sections_are_told():
    for section in (
        3,
        {"name": "search.best_of", "count": 2},
        {"name": "search.best_off", "count": 2, "reward": REWARD},
        {"name": "search.best_of", "count": 0, "reward": REWARD},
        {"name": "search.best_of", "count": 2, "reward": {"name": "nobody.knows"}},
        {"name": "search.best_of", "count": 2, "reward": {"name": "classifier", "file": "no"}},
    ):
        with pytest.raises(UsageError, match="allowed"):
            steered(of_diffusion(), section)
    with pytest.raises(UsageError, match="start from noise"):
        section = {"name": "search.zero_order", "rounds": 1, "neighbours": 1, "reward": REWARD}
        steered(of_tokens(), section)


def test_rewards_of_the_library(tmp_path):
    x = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1), minval=-1)
    labels = jnp.array([0, 1, 2, 3, 4], jnp.int32)  # 4: no label
    network = ConvNet(4)
    params = jax.jit(network.init)(jax.random.key(1), x)["params"]
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep=".")
    safetensors.numpy.save_file(flat, tmp_path / "classifier.safetensors")
    file = str(tmp_path / "classifier.safetensors")
    reward = build({"name": "classifier", "file": file}, ROOMS["reward"], "reward")
    log = jax.nn.log_softmax(jax.jit(network.apply)({"params": params}, x)[1])
    found = jax.jit(reward)(x, labels)
    np.testing.assert_allclose(found[:4], log[np.arange(4), np.arange(4)], rtol=1e-5)
    assert found[4] == 0
    with pytest.raises(UsageError, match="as it was trained on"):
        jax.eval_shape(reward, x[:, :5], labels)

    np.save(tmp_path / "goal.npy", x[0])
    near = build({"name": "likeness", "file": str(tmp_path / "goal.npy")}, ROOMS["reward"], "r")
    np.testing.assert_allclose(near(x, labels), -((x - x[0]) ** 2).mean((1, 2, 3)), rtol=1e-5)
    with pytest.raises(UsageError, match="an example of shape"):
        near(x[:, :4], labels)
