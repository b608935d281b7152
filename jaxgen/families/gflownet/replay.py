"""A ring of past trajectories, kept in the state of training so that a run resumes exactly."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


class Replay(flax.struct.PyTreeNode):
    """actions int32 [size, T]; log_rewards float32 [size]; count int32 (): ever put in."""

    actions: jax.Array
    log_rewards: jax.Array
    count: jax.Array


def empty(size: int, steps: int) -> Replay:
    """A ring of `size` trajectories of at most `steps` actions, with nothing in it."""
    return Replay(
        actions=jnp.zeros((size, steps), jnp.int32),
        log_rewards=jnp.zeros(size),
        count=jnp.zeros((), jnp.int32),
    )


def put(replay: Replay, actions: jax.Array, log_rewards: jax.Array) -> Replay:
    """The oldest trajectories replaced by these [B, T] (the last of them, where B > size)."""
    size = len(replay.log_rewards)
    actions, log_rewards = actions[-size:], log_rewards[-size:]
    fresh = len(actions)
    place = (replay.count + jnp.arange(fresh)) % size
    # The count never overflows: after the ring is full only its place in it matters.
    count = replay.count + fresh
    return Replay(
        actions=replay.actions.at[place].set(actions),
        log_rewards=replay.log_rewards.at[place].set(log_rewards),
        count=jnp.where(count >= 2 * size, count - size, count),
    )


def mix(
    replay: Replay, actions: jax.Array, keys: jax.Array, *, share: float, priority: float
) -> jax.Array:
    """actions [B, T] with a share of the rows replaced by trajectories from the ring, if any.

    Row i's coin and draw are from keys[i]. A trajectory is drawn with chance in proportion to
    R^priority; 0: uniform (prioritised replay of Shen et al. 2023, softly).
    """
    there = jnp.arange(len(replay.log_rewards)) < replay.count
    logits = jnp.where(there, priority * replay.log_rewards, -jnp.inf)
    weights = jnp.cumsum(jax.nn.softmax(jnp.where(there.any(), logits, 0.0)))

    def one(key: jax.Array, fresh: jax.Array) -> jax.Array:
        coin, place = jax.random.uniform(key, (2,))
        found = jnp.searchsorted(weights, place * weights[-1], side="right")
        old = replay.actions[jnp.minimum(found, len(weights) - 1)]
        return jnp.where((coin < share) & (replay.count > 0), old, fresh)

    return jax.vmap(one)(keys, actions)
