"""Replayed trajectories: a ring of actions [size, T] and log rewards [size], and draws from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.method.ring import Ring, ring_of


class Replay(NamedTuple):
    """size: trajectories kept, 0: none. share, priority: see `mix`."""

    size: int
    share: float
    priority: float

    def extra(self, steps: int) -> Any:
        """The state's extra: an empty ring of trajectories, or nothing."""
        return {"replay": empty(self.size, steps)} if self.size else ()


def empty(size: int, steps: int) -> Ring:
    """A ring of `size` trajectories of at most `steps` actions, with nothing in it."""
    rows = {"actions": jnp.zeros((size, steps), jnp.int32), "log_rewards": jnp.zeros(size)}
    return ring_of(rows)


def mix(
    ring: Ring, actions: jax.Array, keys: jax.Array, *, share: float, priority: float
) -> jax.Array:
    """actions [B, T] with a share of the rows replaced by trajectories from the ring, if any.

    Whether row i is replaced, and by which, is from keys[i] alone. A trajectory is drawn with
    probability proportional to R^priority; 0: uniformly (prioritised replay of Shen et al. 2023,
    softly).
    """
    there = jnp.arange(ring.size) < ring.count
    logits = jnp.where(there, priority * ring.rows["log_rewards"], -jnp.inf)
    weights = jnp.cumsum(jax.nn.softmax(jnp.where(there.any(), logits, 0.0)))

    def replayed(key: jax.Array, fresh: jax.Array) -> jax.Array:
        chance, place = jax.random.uniform(key, (2,))
        row = jnp.searchsorted(weights, place * weights[-1], side="right")
        old = ring.rows["actions"][jnp.minimum(row, len(weights) - 1)]
        return jnp.where((chance < share) & (ring.count > 0), old, fresh)

    return jax.vmap(replayed)(keys, actions)
