"""Search over paths: samples half made are noised again, branch, and the best of them go on.

Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
section 3.2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method.chain import Chain, Reward, State
from jaxgen.steer.search import Search, best_of, branch, search


def over_paths(
    chain: Chain,
    reward: Reward,
    *,
    width: int,
    branches: int,
    start: int,
    stride: int,
    back: int = 0,
) -> Search:
    """The best of `width` samples, each chosen among branches at every round on its way.

    `width` noises go `start` steps. Then, each round, each of them is noised again `back` steps up,
    `branches` times, and all go back + stride steps down; the `width` with the highest rewards of
    their estimated samples are kept. The last round ends at samples, and their rewards choose. A
    chain that draws no noise of its own needs back > 0 to branch. width = branches = 1 with back =
    0 is the chain itself, bit for bit. Image i depends on its own key alone.
    """
    if width < 1 or branches < 1:
        raise invalid("steer.width", (width, branches), "width >= 1 and branches >= 1")
    if stride < 1 or not 0 <= start < chain.steps or (chain.steps - start) % stride:
        allowed = f"start >= 0 and stride >= 1 that divides {chain.steps} - start > 0"
        raise invalid("steer.stride", (start, stride), allowed)
    if not 0 <= back <= start or (back and chain.back is None):
        raise invalid("steer.back", back, f"0 to start={start}; 0 if the chain cannot be noised")
    if width == branches == 1 and back == 0:
        return best_of(chain, reward, count=1)
    many, rounds = width * branches, (chain.steps - start) // stride

    def keyed(keys: jax.Array, count: int, turn: jax.Array | int) -> jax.Array:
        """Keys [count B] of a round; only where steps are repeated does each need its own."""
        numbers = jnp.arange(count) + (many * turn if back else 0)
        return jax.vmap(lambda n: branch(keys, n))(numbers).reshape(-1)

    def run(keys: jax.Array, state: State, first: jax.Array | int, count: int) -> State:
        def body(state: State, number: jax.Array) -> tuple[State, None]:
            return chain.step(keys, state, number), None

        return jax.lax.scan(body, state, first + jnp.arange(count))[0]

    def keep(state: State, score: jax.Array, size: int) -> tuple[State, jax.Array]:
        """Of [many B] the `width` best of each image, [width B], best first; and their rewards."""
        score = jnp.where(jnp.isnan(score), -jnp.inf, score).reshape(many, size)
        best, place = jax.lax.top_k(score.T, width)
        rows = (place * size + jnp.arange(size)[:, None]).T.reshape(-1)
        return jax.tree.map(lambda a: a[rows] if a.ndim else a, state), best.T

    def traced(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        size = keys.shape[0]

        def candidates(state: State, turn: jax.Array | int) -> tuple[jax.Array, State]:
            """Every path branched and brought to the end of the round: [many B]."""
            candidate_keys = keyed(keys, many, turn)
            wide = jax.tree.map(
                lambda a: (
                    jnp.repeat(a.reshape(width, size, *a.shape[1:]), branches, 0).reshape(
                        many * size, *a.shape[1:]
                    )
                    if a.ndim
                    else a
                ),
                state,
            )
            at = start + stride * turn
            if back and chain.back is not None:
                wide = chain.back(candidate_keys, wide, jnp.asarray(at), jnp.asarray(at - back))
            return candidate_keys, run(candidate_keys, wide, at - back, back + stride)

        def turn(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            candidate_keys, state = candidates(carry, number)
            after = start + stride * (number + 1)
            state, best = keep(state, reward(chain.estimate(candidate_keys, state, after)), size)
            return state, best[0]

        first = keyed(keys, width, 0)
        state = run(first, chain.start(first), 0, start)
        state, trace = jax.lax.scan(turn, state, jnp.arange(rounds - 1))
        _, state = candidates(state, rounds - 1)
        state, best = keep(state, reward(chain.sample(state)), size)
        x = chain.sample(state)[:size]
        return x, best[0], jnp.concatenate([trace, best[:1]])

    calls = width * float(chain.step_calls[:start].sum())
    for number in range(rounds):
        at = start + stride * number
        calls += many * float(chain.step_calls[at - back : at + stride].sum())
        if number < rounds - 1:
            calls += many * float(chain.estimate_calls[at + stride - 1])
    return search(traced, many * rounds, calls)
