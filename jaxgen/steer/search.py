"""Search for a noise (or a key) whose sample scores best: best-of-N and zero-order search.

Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
section 3. Candidates run one after the other, so memory is the plain sampler's. Image i depends on
its own key alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold
from jaxgen.method.chain import BRANCHES, Chain, Reward, Steered

Traced = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Search(Steered):
    """A search: traced(keys [B]) -> (x [B, ...], reward [B], trace) is what `fn` keeps x of.

    trace [evaluations, B]: the best reward so far after each. evaluations: rewards asked for each
    image.
    """

    traced: Traced
    evaluations: int


def search(traced: Traced, evaluations: int, calls: float) -> Search:
    """A `Search` of its traced function."""
    return Search(lambda keys: traced(keys)[0], calls, traced, evaluations)


def branch(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Keys [B] of attempt `number`; attempt 0 has the keys themselves."""
    other = fold(fold(keys, BRANCHES), number)
    return jnp.where(jnp.asarray(number) == 0, keys, other)


def _better(first: Any, second: Any) -> Any:
    """Of two (reward [B], *states) the rows of higher reward; NaN never wins."""
    wins = second[0] > first[0]
    return jax.tree.map(
        lambda a, b: (
            jnp.where(wins.reshape(wins.shape + (1,) * (a.ndim - 1)), b, a) if a.ndim else a
        ),
        first,
        second,
    )


def best_of(chain: Chain, reward: Reward, *, count: int) -> Search:
    """The best of `count` independent samples: random search.

    count = 1 is the sampler itself, bit for bit.
    """
    if count < 1:
        raise invalid("steer.count", count, "an integer >= 1")

    def traced(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = chain.run(keys)

        def attempt(best: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            x = chain.run(branch(keys, number))
            best = _better(best, (reward(x), x))
            return best, best[0]

        first = (reward(x), x)
        (score, x), trace = jax.lax.scan(attempt, first, jnp.arange(1, count))
        return x, score, jnp.concatenate([first[0][None], trace])

    return search(traced, count, count * chain.calls)


def zero_order(
    chain: Chain, reward: Reward, *, rounds: int, neighbours: int, radius: float = 0.3
) -> Search:
    """Zero-order search: a pivot noise, `neighbours` of it each round, the best is the next pivot.

    The noise of the chain's steps is the same in all rounds. A neighbour is sqrt(1 - radius^2)
    pivot + radius fresh, of the noise's law over fresh draws, where the paper's is any noise at a
    distance. The pivot competes, so rewards never fall. rounds = 0 is the sampler itself; radius =
    1 random search. For chains that start from noise (`Chain.mix`), not from a blank.
    """
    if rounds < 0 or neighbours < 1:
        allowed = "rounds >= 0 and neighbours >= 1"
        raise invalid("steer.rounds", (rounds, neighbours), allowed)
    if not 0 < radius <= 1:
        raise invalid("steer.radius", radius, "0 < radius <= 1")
    if chain.mix is None:
        raise invalid("steer", "zero_order", "others: this sampler does not start from noise")
    mix = chain.mix

    def traced(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def neighbour(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            pivot, best = state
            noise = mix(pivot, chain.start(branch(keys, number)), radius)
            x = chain.finish(keys, noise)
            best = _better(best, (reward(x), x, noise))
            return (pivot, best), best[0]

        def turn(best: Any, numbers: jax.Array) -> tuple[Any, jax.Array]:
            (_, best), trace = jax.lax.scan(neighbour, (best[2], best), numbers)
            return best, trace

        noise = chain.start(keys)
        x = chain.finish(keys, noise)
        first = (reward(x), x, noise)
        numbers = 1 + jnp.arange(rounds * neighbours).reshape(rounds, neighbours)
        (score, x, _), trace = jax.lax.scan(turn, first, numbers)
        return x, score, jnp.concatenate([first[0][None], trace.reshape(-1, *first[0].shape)])

    count = 1 + rounds * neighbours
    return search(traced, count, count * chain.calls)
