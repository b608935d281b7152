"""Weighted particles: effective sample size, log-mean-exp and systematic resampling.

Log-weights are float32 [K] and need no normalisation; -inf is a particle of weight 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1: a position that rounds up to 1 would lie past the last weight."""


def relative(log_weights: jax.Array) -> jax.Array:
    """Weights over the largest of them, [K]; all 1 where every weight is 0."""
    top = log_weights.max()
    return jnp.where(
        jnp.isneginf(top), 1.0, jnp.exp(log_weights - jnp.where(top > -jnp.inf, top, 0))
    )


def normalised(log_weights: jax.Array) -> jax.Array:
    """Weights [K] that sum to 1."""
    weights = relative(log_weights)
    return weights / weights.sum()


def effective_size(log_weights: jax.Array) -> jax.Array:
    """ESS = (sum w)^2 / sum w^2, from 1 to K; exactly K where all weights are equal."""
    weights = relative(log_weights)
    return weights.sum() ** 2 / (weights**2).sum()


def log_mean_exp(values: jax.Array, axis: int | None = None) -> jax.Array:
    """ln mean exp(values) along an axis, or over all of them; no overflow."""
    size = values.size if axis is None else values.shape[axis]
    return jax.nn.logsumexp(values, axis=axis) - jnp.log(jnp.float32(size))


def systematic(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Indices [K] of particles to keep, rising: one uniform draw, K positions 1 / K apart.

    Particle i, of normalised weight w, is kept K w times on average, and floor(K w) or ceil(K w)
    times always, up to rounding (Kitagawa 1996; Carpenter et al. 1999). Weight 0 is never kept.
    """
    count = log_weights.shape[0]
    reach = jnp.cumsum(relative(log_weights))
    positions = (jax.random.uniform(key) + jnp.arange(count)) / count
    ancestors = jnp.searchsorted(
        reach / reach[-1], jnp.minimum(positions, BELOW_ONE), side="right", method="sort"
    )
    return ancestors.astype(jnp.int32)


def take(particles: PyTree, indices: jax.Array) -> PyTree:
    """The particles at indices: of every array [K, ...] those rows; scalars are shared by all."""
    return jax.tree.map(lambda a: a[indices] if jnp.ndim(a) else a, particles)
