"""Replayed trajectories: a ring of actions [size, T] and log rewards [size], and draws from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.method.ring import Ring, ring_of


def empty(size: int, steps: int) -> Ring:
    """A ring of `size` trajectories of at most `steps` actions, with nothing in it."""
    rows = {"actions": jnp.zeros((size, steps), jnp.int32), "log_rewards": jnp.zeros(size)}
    return ring_of(rows)


def mix(
    ring: Ring, actions: jax.Array, keys: jax.Array, *, share: float, priority: float
) -> jax.Array:
    """actions [B, T] with a share of the rows replaced by trajectories from the ring, if any.

    Row i's coin and draw are from keys[i]. A trajectory is drawn with chance in proportion to
    R^priority; 0: uniform (prioritised replay of Shen et al. 2023, softly).
    """
    there = jnp.arange(ring.size) < ring.count
    logits = jnp.where(there, priority * ring.rows["log_rewards"], -jnp.inf)
    weights = jnp.cumsum(jax.nn.softmax(jnp.where(there.any(), logits, 0.0)))

    def one(key: jax.Array, fresh: jax.Array) -> jax.Array:
        coin, place = jax.random.uniform(key, (2,))
        found = jnp.searchsorted(weights, place * weights[-1], side="right")
        old = ring.rows["actions"][jnp.minimum(found, len(weights) - 1)]
        return jnp.where((coin < share) & (ring.count > 0), old, fresh)

    return jax.vmap(one)(keys, actions)
