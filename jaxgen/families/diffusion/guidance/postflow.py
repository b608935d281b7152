"""A flow from guided samples to the data, after sampling (Zhao & Schwing 2025, section 3.4).

Guidance pushes samples away from decision boundaries; a small flow-matching model, trained on pairs
of (sample, data), takes them back to where the data are. The diffusion model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import expand

Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def pairs_loss(velocity: Velocity, x0: jax.Array, x1: jax.Array, key: jax.Array) -> jax.Array:
    """Mean of |velocity(x_s, s) - (x1 - x0)|^2 at x_s = (1 - s) x0 + s x1, s uniform, ().

    velocity(x[B, ...], s[B]) -> [B, ...]; x0 samples and x1 data [B, ...], paired by the caller
    (`interpolant.couple`: the pairs of a batch that are nearest in all).
    """
    s = jax.random.uniform(key, x0.shape[:1])
    at = expand(1 - s, x0) * x0 + expand(s, x0) * x1
    return ((velocity(at, s) - (x1 - x0)) ** 2).mean()


def transport(velocity: Velocity, x: jax.Array, steps: int = 16) -> jax.Array:
    """Samples x [B, ...] carried from s=0 to s=1 by midpoint steps; two calls of velocity each."""
    if steps < 1:
        raise invalid("postflow.steps", steps, "steps >= 1")
    h = 1 / steps

    def step(x: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
        ones = jnp.ones(x.shape[0])
        middle = x + 0.5 * h * velocity(x, s * ones)
        return x + h * velocity(middle, (s + 0.5 * h) * ones), None

    return jax.lax.scan(step, x, jnp.arange(steps) * h)[0]
