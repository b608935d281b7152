"""Search for a noise (or a key) whose sample scores best: best-of-N and zero-order search.

Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
section 3. Candidates run one after the other, so memory is the plain sampler's. Image i depends on
its own key alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold, normal

Reward = Callable[[jax.Array], jax.Array]
Sample = Callable[[jax.Array], jax.Array]
Generate = Callable[[jax.Array, jax.Array], jax.Array]

BRANCHES = 2
"""Samplers use fold_in(key, 0) for the prior and 1 for the steps; steering's keys hang below 2."""


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search as one jittable function: fn(keys[B]) -> (x [B, ...], reward [B], trace).

    trace [evaluations, B]: the best reward so far after each. evaluations: rewards asked for each
    image; calls: network evaluations for it.
    """

    fn: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    evaluations: int
    calls: float

    def __call__(self, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Search once for each key."""
        return self.fn(keys)


def branch(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Keys [B] of attempt `number`; attempt 0 has the keys themselves."""
    other = fold(fold(keys, BRANCHES), number)
    return jnp.where(jnp.asarray(number) == 0, keys, other)


def _better(one: Any, two: Any) -> Any:
    """Of two (reward [B], *arrays [B, ...]) the rows of higher reward; NaN never wins."""
    wins = two[0] > one[0]
    return jax.tree.map(
        lambda a, b: jnp.where(wins.reshape(wins.shape + (1,) * (a.ndim - 1)), b, a), one, two
    )


def best_of(sample: Sample, reward: Reward, count: int, *, calls: float = 1.0) -> Search:
    """The best of `count` independent samples: random search.

    sample(keys [B]) -> x [B, ...]; calls: network evaluations that one sample costs. count = 1 is
    the sampler itself, bit for bit.
    """
    if count < 1:
        raise invalid("steer.count", count, "an integer >= 1")

    def fn(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = sample(keys)

        def attempt(best: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            x = sample(branch(keys, number))
            best = _better(best, (reward(x), x))
            return best, best[0]

        first = (reward(x), x)
        (score, x), trace = jax.lax.scan(attempt, first, jnp.arange(1, count))
        return x, score, jnp.concatenate([first[0][None], trace])

    return Search(fn, count, count * calls)


def zero_order(
    generate: Generate,
    reward: Reward,
    shape: tuple[int, ...],
    *,
    rounds: int,
    neighbours: int,
    radius: float = 0.3,
    calls: float = 1.0,
) -> Search:
    """Zero-order search: a pivot noise, `neighbours` of it each round, the best is the next pivot.

    generate(keys [B], noise [B, *shape]) -> x; its keys are the same in all rounds. A neighbour is
    sqrt(1 - radius^2) pivot + radius fresh, again standard normal over fresh draws, where the
    paper's is any noise at a distance. The pivot competes, so rewards never fall. rounds = 0 is
    the sampler itself; radius = 1 random search.
    """
    if rounds < 0 or neighbours < 1:
        allowed = "rounds >= 0 and neighbours >= 1"
        raise invalid("steer.rounds", (rounds, neighbours), allowed)
    if not 0 < radius <= 1:
        raise invalid("steer.radius", radius, "0 < radius <= 1")
    keep = math.sqrt(1 - radius**2)

    def fn(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def neighbour(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            pivot, best = state
            fresh = normal(branch(keys, number), shape)
            noise = keep * pivot + radius * fresh
            x = generate(keys, noise)
            best = _better(best, (reward(x), x, noise))
            return (pivot, best), best[0]

        def turn(best: Any, numbers: jax.Array) -> tuple[Any, jax.Array]:
            (_, best), trace = jax.lax.scan(neighbour, (best[2], best), numbers)
            return best, trace

        noise = normal(fold(keys, 0), shape)
        x = generate(keys, noise)
        first = (reward(x), x, noise)
        numbers = 1 + jnp.arange(rounds * neighbours).reshape(rounds, neighbours)
        (score, x, _), trace = jax.lax.scan(turn, first, numbers)
        return x, score, jnp.concatenate([first[0][None], trace.reshape(-1, *first[0].shape)])

    count = 1 + rounds * neighbours
    return Search(fn, count, count * calls)
