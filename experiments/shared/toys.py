"""Exact toys for guidance and steering: an asymmetric mixture, point masses, five seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, expand, linear
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.method import fold, normal
from jaxgen.testing import ASYMMETRIC, gaussian_denoiser, mixture_denoiser, responsibilities

PATH = linear()
MEANS, STDS, WEIGHTS = ASYMMETRIC
SEEDS = 5


def of_class(label: int, path: Path = PATH) -> Denoiser:
    """The exact denoiser of one class of ASYMMETRIC."""
    return mixture_denoiser(path, MEANS[label, None], STDS[label, None], jnp.ones(1))


def of_all(path: Path = PATH) -> Denoiser:
    """The exact denoiser of all three classes."""
    return mixture_denoiser(path, MEANS, STDS, WEIGHTS)


def of_point(point: Any, path: Path = PATH) -> Denoiser:
    """The exact denoiser of a single point: its x0 is the point, whatever x is."""
    where = jnp.asarray(point, jnp.float32)[None]
    return mixture_denoiser(path, where, jnp.zeros(1), jnp.ones(1))


def posterior(x: jax.Array) -> jax.Array:
    """p(class | x) of data x [..., 2], [..., 3]."""
    flat = x.reshape(-1, 2)
    share = responsibilities(PATH, flat, jnp.float32(0), MEANS, STDS, WEIGHTS)
    return share.reshape(*x.shape[:-1], 3)


def samples(
    denoiser: Denoiser,
    *,
    steps: int = 32,
    count: int = 1000,
    solver: Solver | None = None,
    path: Path = PATH,
    grid: jax.Array | None = None,
) -> jax.Array:
    """Samples in the plane, [seeds, count, 2]; by default Euler's on a uniform grid."""
    chosen = solvers.euler(path) if solver is None else solver
    times = grids.uniform(steps, path) if grid is None else grid
    # One batch of all seeds' keys: a vmap would turn `lax.cond` into both of its branches.
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), count) for s in range(SEEDS)])
    run = jax.jit(lambda k: integrate(chosen, denoiser, prior(path, k, (2,)), times, k))
    return run(keys).reshape(SEEDS, count, 2)


def points(seed: int | jax.Array = 0, count: int = 256) -> tuple[jax.Array, jax.Array]:
    """(keys [count], x [count, 2]) to call a denoiser at."""
    key = jax.random.key(seed)
    return jax.random.split(key, count), jax.random.normal(jax.random.fold_in(key, 7), (count, 2))


def estimate(denoiser: Denoiser, t: float, seed: int | jax.Array = 0) -> Prediction:
    """A denoiser's first estimate at `points(seed)` and time t."""
    keys, x = points(seed)
    return denoiser(keys, x, jnp.float32(t), denoiser.init(x))[0]


def of_mean(mean: Any, std: float, path: Path = PATH) -> Denoiser:
    """The exact denoiser of N(y, std^2 I) whose condition vector is its mean y."""

    def changed(change: Callable[[jax.Array], jax.Array]) -> Denoiser:
        def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
            y = change(jnp.broadcast_to(jnp.asarray(mean, x.dtype), x.shape))
            return gaussian_denoiser(path, y, std)(keys, x, t, memory)

        return Denoiser(call, path=path, recondition=changed)

    return changed(lambda y: y)


def of_draws(path: Path = PATH) -> Denoiser:
    """Draws of x0 from p(x0 | x) for ASYMMETRIC, in place of its mean.

    With it the ancestral sampler `ddim(path, 1.0)` draws the data's law in any number of steps:
    its kernel is q(x_s | x_t, x0), and x0 has the posterior's law.
    """

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        log = jnp.log(responsibilities(path, x, t, MEANS, STDS, WEIGHTS))
        which = jax.vmap(jax.random.categorical)(fold(keys, 0), log)
        alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
        mean, variance = jnp.asarray(MEANS)[which], jnp.asarray(STDS)[which, None] ** 2
        total = alpha**2 * variance + sigma**2
        spread = sigma * jnp.sqrt(variance / total) * normal(fold(keys, 1), x.shape[1:])
        x0 = mean + alpha * variance / total * (x - alpha * mean) + spread
        return from_x0(x0, x, t, path), memory

    return Denoiser(call, path=path)


def tilted(slope: Any) -> tuple[np.ndarray, np.ndarray]:
    """ASYMMETRIC times exp(slope . x): a mixture again, (means [3, 2], weights [3])."""
    slope = np.asarray(slope)
    share = WEIGHTS * np.exp(MEANS @ slope + STDS**2 * (slope @ slope) / 2)
    return MEANS + STDS[:, None] ** 2 * slope, share / share.sum()
