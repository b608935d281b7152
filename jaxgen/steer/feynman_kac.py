"""Feynman-Kac correctors: exact powers and products of frozen diffusion models.

Skreta et al. 2025, "Feynman-Kac Correctors in Diffusion". The reverse SDE that follows a sum of
scores does not sample the product of the densities; weights along its way make up for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, path_of, together
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.method import fold, normal
from jaxgen.method.streams import CALL, NOISE, START, STEPS
from jaxgen.steer.particles import Particles, check_threshold, smc


@dataclasses.dataclass(frozen=True, eq=False)
class Corrector:
    """fn(keys [K]) -> Particles x [K, *shape]; jit it, and shard keys to shard the particles.

    calls: network evaluations for each particle.
    """

    fn: Callable[[jax.Array], Particles]
    calls: float

    def __call__(self, keys: jax.Array) -> Particles:
        """One set of particles, one for each key."""
        return self.fn(keys)


def annealed(
    denoiser: Denoiser, beta: float, grid: Any, shape: tuple[int, ...], **how: Any
) -> Corrector:
    """q^beta: a model at temperature 1 / beta (their proposition 3.1)."""
    return power_product([denoiser], [beta], grid, shape, **how)


def geometric(
    first: Denoiser, second: Denoiser, beta: float, grid: Any, shape: tuple[int, ...], **how: Any
) -> Corrector:
    """first^(1 - beta) second^beta: with (uncond, cond) what CFG at weight beta means to sample."""
    return power_product([first, second], [1 - beta, beta], grid, shape, **how)


def product(
    first: Denoiser, second: Denoiser, grid: Any, shape: tuple[int, ...], **how: Any
) -> Corrector:
    """first times second: a product of experts."""
    return power_product([first, second], [1.0, 1.0], grid, shape, **how)


def power_product(
    denoisers: Sequence[Denoiser],
    powers: Sequence[float],
    grid: Any,
    shape: tuple[int, ...],
    *,
    path: Path | None = None,
    threshold: float = 0.5,
    noise: float = 1.0,
) -> Corrector:
    """prod_i q_i^powers[i], for powers whose sum B is positive.

    In y = x / alpha, v = (sigma / alpha)^2 every path has no drift, so that their four cases are
    one: with scores s_i and S = sum_i powers[i] s_i, as v falls,
        dy = (1 + noise) / 2 S dv + sqrt(noise) dW
        d ln w = (|S|^2 - sum_i powers[i] |s_i|^2) / 2 dv.
    noise = 1 is theirs. The weights hold for any noise >= 0: more of it keeps the particles closer
    to the target, so that weights vary less, and wants smaller steps. A step holds the estimates
    of x0 and is exact for the rest (B = noise = 1: the ancestral sampler); weights are integrated
    by the trapezoid rule, the last step's by its start. At grid[0], which must be noisy enough for
    q_i to be N(0, v), the product is N(0, v / B). log_normaliser estimates ln of the integral of
    the product of the data's densities. Particles are resampled below ESS = threshold K; at the
    end they keep their weights.
    """
    check_threshold(threshold)
    total = float(sum(powers))
    if len(powers) != len(denoisers) or not total > 0:
        raise invalid("steer.powers", list(powers), f"{len(denoisers)} numbers whose sum is > 0")
    if noise < 0:
        raise invalid("steer.noise", noise, "noise >= 0")
    path = path_of(denoisers[0], path)
    times = np.asarray(grid, np.float32)
    if len(times) < 2 or not math.isfinite(float(path.ratio(jnp.asarray(times[0])))):
        allowed = "at least one step, from where sigma / alpha is finite"
        raise invalid("steer.grid", times.tolist(), allowed)
    levels = path.ratio(jnp.asarray(times)) ** 2
    weights = jnp.asarray(powers, jnp.float32)
    size = math.prod(shape)

    def estimate(keys: jax.Array, y: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
        """(sum of scores, sum of x0, weight rate) at y, and the memories."""
        predictions, memory = together(denoisers, keys, path.alpha(t) * y, t, memory)
        return _combined(predictions, weights, path.ratio(t)), memory

    def fn(keys: jax.Array) -> Particles:
        step_keys = fold(keys, STEPS)
        y = jnp.sqrt(levels[0] / total) * normal(fold(keys, START), shape)
        memory = tuple(d.init(y) for d in denoisers)

        def move(y: jax.Array, x0: jax.Array, number: Any, v: jax.Array, u: jax.Array) -> Any:
            fresh = normal(fold(fold(step_keys, number), NOISE), shape)
            return _move(y, x0 / total, v, u, (1 + noise) / 2 * total, noise, fresh)

        def step(state: Any, given: Any) -> tuple[Any, jax.Array]:
            y, (x0, rate), memory = state
            number, v, u, s = given
            y = move(y, x0, number, v, u)
            (x0, after), memory = estimate(fold(fold(step_keys, number), CALL), y, s, memory)
            return (y, (x0, after), memory), 0.5 * (rate + after) * (v - u)

        begun, memory = estimate(
            fold(fold(step_keys, len(times)), CALL), y, jnp.asarray(times[0]), memory
        )
        steps = jnp.arange(len(times) - 2)
        inputs = (steps, levels[:-2], levels[1:-1], jnp.asarray(times[1:-1]))
        particles = smc(step, (y, begun, memory), inputs, keys, threshold)
        y, (x0, rate), _ = particles.x
        y = move(y, x0, len(times) - 2, levels[-2], levels[-1])
        last = rate * (levels[-2] - levels[-1])
        return _finish(particles, path.alpha(jnp.asarray(times[-1])) * y, last, _prior(levels[0]))

    def _prior(v: jax.Array) -> jax.Array:
        """ln of the integral of N(0, v I)^B."""
        return 0.5 * size * ((1 - total) * jnp.log(2 * jnp.pi * v) - math.log(total))

    calls = float(sum(d.calls(float(t)) for d in denoisers for t in times[:-1]))
    return Corrector(fn, calls)


def _combined(
    predictions: Sequence[Prediction], powers: jax.Array, ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum_i powers[i] x0_i [K, ...], the log-weights' rate per unit of v [K])."""
    x0 = sum((b * p.x0 for b, p in zip(powers, predictions, strict=True)), jnp.float32(0))
    eps = sum((b * p.eps for b, p in zip(powers, predictions, strict=True)), jnp.float32(0))
    apart = sum(
        (b * _square(p.eps) for b, p in zip(powers, predictions, strict=True)), jnp.float32(0)
    )
    return jnp.asarray(x0), (_square(jnp.asarray(eps)) - apart) / (2 * ratio**2)


def _square(a: jax.Array) -> jax.Array:
    """Squared norms [K] of a [K, ...]."""
    return (a.reshape(a.shape[0], -1) ** 2).sum(1)


def _move(
    y: jax.Array,
    x0: jax.Array,
    v: jax.Array,
    u: jax.Array,
    pull: float,
    noise: float,
    fresh: jax.Array,
) -> jax.Array:
    """dy = pull (x0 - y) / v dv + sqrt(noise) dW from v down to u, exactly, with x0 held."""
    keep = u / v
    rest = 2 * pull - 1
    # (keep - keep^(2 pull)) / (2 pull - 1), and its limit at pull = 1/2.
    log = jnp.log(jnp.maximum(keep, jnp.finfo(jnp.float32).tiny))
    grown = -log if rest == 0 else -jnp.expm1(rest * log) / rest
    return x0 + keep**pull * (y - x0) + jnp.sqrt(noise * v * keep * grown) * fresh


def _finish(particles: Particles, x: jax.Array, last: jax.Array, prior: jax.Array) -> Particles:
    """The particles at their end: the last step's weights, and the prior's normaliser."""
    before = jax.nn.logsumexp(particles.log_weights)
    log_weights = particles.log_weights + last
    more = jax.nn.logsumexp(log_weights) - before
    total = particles.log_normaliser + more + prior
    return particles._replace(x=x, log_weights=log_weights, log_normaliser=total)
