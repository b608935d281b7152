"""A workdir of a small model with random parameters, to start from or to be taught by."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxgen import config as configs
from jaxgen.run import record
from jaxgen.run.setup import TOP, set_up
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.log import say
from tests import tiny
from tests.nn_kit import quick_jit


def config(*overrides: str):
    """The tiny diffusion with an MLP, 8 steps of 16."""
    found = tiny.get_config()
    found.model = dict(name="mlp.MLP", width=24, depth=1)
    found.ema = dict(half_life=(500,))
    found.train.images, found.checkpoint = 128, dict(every=64)
    configs.override(found, overrides, TOP)
    return found


def write(workdir: Path, *overrides: str, seed: int = 0) -> Path:
    """A workdir with a checkpoint of random parameters: an untrained network says 0."""
    parts = set_up(config(*overrides))
    state = quick_jit(parts.method.init)(jax.random.key(seed))
    live = jax.tree.map(
        lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size + seed), a.shape), state.params
    )
    averages = {
        name: {k: jax.tree.map(lambda a, n=number: a * 0.9**n, live[k]) for k in groups}
        for number, (name, groups) in enumerate(state.ema.items())
    }
    state = state.replace(params=live, ema=averages)
    workdir.mkdir()
    with Checkpoints(workdir, say=say) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
    record.save(workdir, parts)
    return workdir


@functools.cache
def base() -> str:
    """One such workdir for the whole session."""
    return str(write(Path(tempfile.mkdtemp()) / "base"))


@functools.cache
def goal() -> str:
    """A file with an example of its data, for rewards."""
    path = Path(base()).parent / "goal.npy"
    np.save(path, np.random.default_rng(0).uniform(-1, 1, (8, 8, 1)).astype(np.float32))
    return str(path)


def told(overrides: list[str]) -> list[str]:
    """Overrides in which BASE and GOAL stand for those two, made where they are first named."""
    files = {"BASE": base, "GOAL": goal}
    for name, made in files.items():
        if any(name in text for text in overrides):
            overrides = [text.replace(name, repr(made())) for text in overrides]
    return overrides
