"""Measured orders of convergence: of a solver's path, or of the law of its samples, in float64.

A deterministic solver is compared with a solution to 1e-11 on an asymmetric mixture. A stochastic
one is compared in law on Gaussian data, where each step is affine in x and in its noise: the mean
and the deviation of its samples follow from one run for each draw of noise, without sampling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, linear
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.solvers import Solver
from jaxgen.testing.exact import ASYMMETRIC, gaussian_denoiser, mixture_denoiser

HIGH, LOW = 0.85, 0.15
MEAN, STD = 0.7, 0.5
SIZES, WEAK_SIZES = (24, 48, 96), (128, 512)
"""Steps. In law, errors of few steps change their sign, and many rows are cheap."""


DOUBLINGS = 12
"""How often the steps of a grid's start double, to the even ones' length."""


def convergence_order(
    solve: Callable[[int], jax.Array], exact: jax.Array, steps: Sequence[int]
) -> float:
    """The measured order: minus the slope of ln(error) over ln(steps), by least squares.

    solve(steps) -> an estimate of `exact`; -inf where one is not finite. Run it in float64 where
    the order is above 2.
    """
    errors = np.array([float(jnp.sqrt(jnp.mean((solve(n) - exact) ** 2))) for n in steps])
    if not np.isfinite(errors).all():
        return -math.inf
    return float(-np.polyfit(np.log(np.asarray(steps, float)), np.log(errors), 1)[0])


def run_solver(
    solver: Solver,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """A solver alone: x [B, ...] from times[0] to times[-1], one key per example."""
    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    return jax.jit(lambda x, k: integrate(solver, denoiser, x, times, k))(x, keys)


def graded(n: int, high: float, low: float, size: int) -> jax.Array:
    """n even steps after a start whose steps double: multistep methods need exact history.

    Padded with steps of length zero to one size, so that one program serves every n.
    """
    h = (high - low) / (n + 1)
    start = [high] + [high - h / 2**k for k in range(DOUBLINGS, -1, -1)]
    even = list(np.linspace(start[-1], low, n + 1)[1:])
    times = start + even
    return jnp.asarray(times + [low] * (size - len(times)))


@functools.cache
def _flow() -> tuple[np.ndarray, np.ndarray]:
    """x [16, 2] at the time .85, and where the mixture's flow takes it at .15, to 1e-11."""
    path = linear()
    model = mixture_denoiser(path, *map(jnp.asarray, ASYMMETRIC))
    x = jax.random.normal(jax.random.key(1), (16, 2), jnp.float64)
    fine = solvers.adaptive(path, order=5, rtol=1e-11, atol=1e-11)
    return np.asarray(x), np.asarray(run_solver(fine, model, x, jnp.array([HIGH, LOW])))


def strong_order(
    solver: Callable[[Path, int], Solver], sizes: Sequence[int] = SIZES, each: bool = False
) -> float:
    """The order of solver(path, steps), deterministic, between the times .85 and .15.

    sizes: numbers of even steps; all run in one program, unless the solver wants to know how many
    steps there are (each: a program for each size).
    """
    with jax.enable_x64(True):
        # One step of length zero at least: UniPC corrects its x in the step after.
        path, most = linear(), max(sizes) + DOUBLINGS + 2
        model = mixture_denoiser(path, *map(jnp.asarray, ASYMMETRIC))
        x, exact = map(jnp.asarray, _flow())
        keys = jax.random.split(jax.random.key(0), len(x))

        def program(steps: int) -> Callable[[jax.Array], jax.Array]:
            tried = solver(path, steps)
            return jax.jit(lambda grid: integrate(tried, model, x, grid, keys))

        finest = program(most)

        def solve(n: int) -> jax.Array:
            run = program(n + DOUBLINGS + 1) if each else finest
            return run(graded(n, HIGH, LOW, most + 1))

        return convergence_order(solve, exact, list(sizes))


def weak_order(solver: Callable[[Path, int], Solver], sizes: Sequence[int] = WEAK_SIZES) -> float:
    """The order in law of solver(path, steps), stochastic, between the times .85 and .15.

    Of the error in (mean, deviation) of samples of N(.7, .5^2) that start from the exact law.
    """
    with jax.enable_x64(True):
        path = linear()
        exact = jnp.stack(_law(path, LOW))

        def solve(n: int) -> jax.Array:
            return jnp.stack(law(solver(path, n), path, jnp.linspace(HIGH, LOW, n + 1)))

        return convergence_order(solve, exact, list(sizes))


def _law(path: Path, t: float) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of x_t of N(MEAN, STD^2)."""
    time = jnp.asarray(t)
    alpha, sigma = path.alpha(time), path.sigma(time)
    return alpha * MEAN, jnp.sqrt((alpha * STD) ** 2 + sigma**2)


def law(solver: Solver, path: Path, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, deviation) [] of a solver's x at grid[-1], for N(.7, .5^2) and the exact law before.

    Exact up to rounding, for solvers that are affine in x and in Gaussian noise. The noise is that
    of a random number generator that says 0 but for one draw, a different one in each row.
    """
    model = gaussian_denoiser(path, MEAN, STD)

    def final(starts: jax.Array, which: np.ndarray, generator: Any) -> jax.Array:
        bits = np.stack([which, np.zeros_like(which)], -1).astype(np.uint32)
        keys = jax.random.wrap_key_data(jnp.asarray(bits), impl=generator)
        run = jax.jit(lambda x: integrate(solver, model, x, grid, keys))
        return run(starts[:, None])[:, 0]

    mean, std = _law(path, float(grid[0]))
    DRAWN.clear()
    jax.block_until_ready(final(mean[None], np.zeros(1), NOTED))
    jax.effects_barrier()
    draws = np.array([0, 0, *sorted(DRAWN)])
    x = final(jnp.where(jnp.arange(len(draws)) == 1, mean + std, mean), draws, ONE_DRAW)
    changes = (x - x[0])[1:] / jnp.where(jnp.arange(len(x) - 1) == 0, 1.0, UNIT)
    return x[0], jnp.sqrt((changes**2).sum())


DRAWN: set[int] = set()
"""The draws of the run before: what the keys had been folded with, as one number."""

UNIT = 0.5
"""What the draw that is not 0 says."""


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """Bits of which `jax.random.normal` makes 0, or UNIT where this draw is the key's own."""
    # Of a uniform number in (-1, 1) whose normal quantile is 0 or UNIT.
    share = np.array([0.5, 0.5 + 0.5 * math.erf(UNIT / 2**0.5)])
    words = np.round(share * 2.0**width).astype(f"uint{width}")
    return jnp.broadcast_to(jnp.asarray(words)[(key[0] == key[1]).astype(int)], shape)


def _noted_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    jax.debug.callback(lambda place: DRAWN.add(int(place)), key[1])
    return _bits(key, width, shape)


def _fold_in(key: jax.Array, number: Any) -> jax.Array:
    place = key[1] * jnp.uint32(2654435761) + jnp.asarray(number).astype(jnp.uint32) + 1
    return jnp.stack([key[0], place])


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = int(np.prod(shape))
    return jax.vmap(lambda n: _fold_in(key, n))(jnp.arange(size)).reshape(*shape, 2)


ONE_DRAW, NOTED = (
    define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.stack([seed.astype(jnp.uint32), jnp.uint32(0)]),
        split=_split,
        random_bits=bits,
        fold_in=_fold_in,
        name=name,
        tag=name,
    )
    for name, bits in (("one_draw", _bits), ("noted", _noted_bits))
)
"""Keys (the draw wanted, the folds so far): normal noise that is 0 in every other draw; and the
same with a note of every draw in DRAWN."""
