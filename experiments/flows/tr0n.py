"""TR0N: a linear generator, a condition that two places meet, and the posterior on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, control, mean_near
from jaxgen.steer.expected import minimise_expected
from jaxgen.steer.translator import TR0N, Translator

PAPER = "TR0N: Translator Networks for 0-Shot Plug-and-Play Conditional Generation"
ENTRY = "jaxgen.steer.translator.TR0N"

SEEDS, TRAINING, BATCH, COUNT, STEPS, SPEED = 5, 400, 256, 800, 300, 0.003
MAP = np.array([[1.0, 0.3], [-0.2, 0.8]])
WANTED, STRENGTH = 2.0, 8.0


def generate(z: jax.Array) -> jax.Array:
    """A linear generator in the plane."""
    return z @ MAP.T


def auxiliary(x: Any) -> Any:
    """A feature [B, 1] that two branches of x_1 share, not equally."""
    return (x[:, :1] ** 2 + 0.8 * x[:, :1]) + 0.5 * x[:, 1:]


def distance(c: jax.Array, images: jax.Array) -> jax.Array:
    """Half of the squared error."""
    return ((c - images) ** 2).sum(-1) / 2


def moments(z: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Share of z_1 > 0, and there the means of z_1, of z_2, and the deviation of z_1."""
    right = z[:, 0] > 0
    total = share[right].sum()
    weights, z = share[right] / total, z[right]
    mean = weights @ z
    return np.array([total / share.sum(), *mean, np.sqrt(weights @ (z[:, 0] - mean[0]) ** 2)])


def exact() -> np.ndarray:
    """`moments` of N(z; 0, I) exp(-STRENGTH distance)."""
    axis = np.linspace(-5, 5, 1001)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    apart = auxiliary(z @ MAP.T)[:, 0] - WANTED
    return moments(z, np.exp(-(z**2).sum(1) / 2 - STRENGTH * apart**2 / 2))


def drawn(components: int, cases: Sequence[tuple[float, int]]) -> np.ndarray:
    """`moments` [cases, SEEDS, 4] of translators' latents after a number of steps at a strength."""
    model = TR0N(Translator(2, components, width=32, depth=1), generate, auxiliary)
    rate = optax.adam(optax.cosine_decay_schedule(1e-2, TRAINING))
    c = jnp.full((COUNT, 1), WANTED)

    def run(key: jax.Array) -> list[jax.Array]:
        run_key = jax.random.fold_in(key, 1)
        params, _ = minimise_expected(
            model.loss, rate, model.init(key), run_key, steps=TRAINING, batch=BATCH
        )
        keys = jax.random.split(jax.random.fold_in(key, 2), COUNT)

        def latents(strength: float, steps: int) -> jax.Array:
            how: Any = dict(strength=strength, steps=steps, speed=SPEED)
            return model.latents(params, c, distance, **how)(keys)

        return [latents(*case) for case in cases]

    results = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))
    same = np.full(COUNT, 1 / COUNT)
    return np.stack([[moments(z, same) for z in np.asarray(a)] for a in results])


NAMES = ("share of the right mode", "its mean of z_1", "its mean of z_2", "its deviation of z_1")


def checks() -> list[Check]:
    """Moments of the posterior after Langevin's steps, and what is missed without a part."""
    want, results = exact(), []
    refined, forgotten = drawn(4, [(STRENGTH, STEPS), (0.0, STEPS)])
    for name, values, numbers, wrap in (
        ("TR0N", refined, (0, 1, 2, 3), lambda check: check),
        # The mean of z_1 on the right is nearly the prior's.
        ("no condition in the energy", forgotten, (0, 2, 3), control),
    ):
        for number in numbers:
            check = f"{name}: {NAMES[number]}"
            results.append(wrap(mean_near(check, values[:, number], want[number], 0.06)))
    # One Gaussian cannot stand in both places.
    (single,) = drawn(1, [(STRENGTH, 0)])
    check = f"one component, no steps: {NAMES[0]}"
    return [*results, control(mean_near(check, single[:, 0], want[0], 0.06))]
