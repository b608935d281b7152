"""Sampling given an event C(x0) = y or C(x0) > y, and the probability of the event.

Finzi et al. 2023, "User-defined Event Sampling and Uncertainty Quantification in Diffusion Models
for Physical Dynamical Systems".
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.core.prediction import ALPHA_MIN, Prediction
from jaxgen.families.diffusion.guidance.universal import Answer, uphill

Constraint = Callable[[jax.Array], jax.Array]
LogLikelihood = Callable[[jax.Array, jax.Array], jax.Array]


def equals(
    guided: Denoiser,
    constraint: Constraint,
    value: float = 0.0,
    *,
    noise: float = 1e-2,
    weight: float = 1.0,
    path: Path | None = None,
) -> Denoiser:
    """The denoiser given constraint(x0) = value, up to normal noise of deviation `noise`.

    constraint(x0 [B, ...]) -> [B] is linearised at E[x0 | x_t], and x0 | x_t taken for the normal
    of its first two moments: exact for linear constraints on Gaussians, and as
    t -> 0. weight = 0 is `guided` itself. The covariance takes a derivative through the denoiser,
    and the gradient another.
    """
    if not noise > 0:
        raise invalid("guidance.noise", noise, "a deviation > 0")

    def log_likelihood(mean: jax.Array, variance: jax.Array) -> jax.Array:
        total = variance + noise**2
        return -0.5 * ((value - mean) ** 2 / total + jnp.log(total))

    return _given(guided, constraint, log_likelihood, weight, path)


def above(
    guided: Denoiser,
    constraint: Constraint,
    value: float = 0.0,
    *,
    weight: float = 1.0,
    path: Path | None = None,
) -> Denoiser:
    """The denoiser given constraint(x0) > value, by the normal's tail.

    Approximate as `equals` is, and most where much noise leaves several far modes open: samples are
    in the event, but the modes' shares of it are off (experiments/diffusion/event_sampling.py).
    """

    def log_likelihood(mean: jax.Array, variance: jax.Array) -> jax.Array:
        return _log_tail(mean, variance, value)

    return _given(guided, constraint, log_likelihood, weight, path)


def log_probability(
    denoiser: Denoiser,
    constraint: Constraint,
    value: float,
    keys: jax.Array,
    x: jax.Array,
    t: jax.Array,
    path: Path | None = None,
) -> jax.Array:
    """ln P(constraint(x0) > value | x_t = x) [B], by the same approximation.

    At a noisy t its mean over x_t, taken of the probabilities, estimates the event's own.
    """
    path = path_of(denoiser, path)
    (mean, variance), _ = _moments(denoiser, constraint, path, keys, x, t, denoiser.init(x))
    return _log_tail(mean, variance, value)


def _log_tail(mean: jax.Array, variance: jax.Array, value: float) -> jax.Array:
    return jax.scipy.stats.norm.logcdf((mean - value) / jnp.sqrt(variance + TINY))


def _given(
    guided: Denoiser,
    constraint: Constraint,
    log_likelihood: LogLikelihood,
    weight: float,
    path: Path | None,
) -> Denoiser:
    """`guided` with the gradient of log_likelihood(mean [B], variance [B]) in its score."""
    if weight == 0:
        return guided
    path = path_of(guided, path)

    def value(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory) -> Answer:
        (mean, variance), answer = _moments(guided, constraint, path, keys, x, t, memory)
        # Where x is nothing but noise it says nothing of the event.
        return jnp.where(path.alpha(t) > ALPHA_MIN, log_likelihood(mean, variance), 0.0), answer

    return uphill(guided, value, weight, path)


def _moments(
    denoiser: Denoiser,
    constraint: Constraint,
    path: Path,
    keys: jax.Array,
    x: jax.Array,
    t: jax.Array,
    memory: Memory,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Prediction, Memory]]:
    """Mean and variance [B] of the linearised constraint given x_t, and the denoiser's answer.

    Tweedie's covariance of x0 is sigma^2 / alpha dE[x0 | x] / dx; the constraint's variance is
    g . S g with its gradient g, one product of a vector with the denoiser's Jacobian. Never below 0
    though a network's Jacobian may be.
    """

    def estimate(y: jax.Array) -> tuple[jax.Array, tuple[Prediction, Memory]]:
        p, after = denoiser(keys, y, t, memory)
        return p.x0, (p, after)

    x0, back, memory_after = jax.vjp(estimate, x, has_aux=True)
    mean, slope = constraint(x0), jax.grad(lambda y: constraint(y).sum())(x0)
    (moved,) = back(slope)
    square = (moved * slope).reshape(x.shape[0], -1).sum(1)
    scale = jnp.broadcast_to(
        path.sigma(t) ** 2 / jnp.maximum(path.alpha(t), ALPHA_MIN), square.shape
    )
    return (mean, jnp.maximum(scale * square, 0.0)), memory_after
