"""Soft value-based decoding: at every step, of M proposals one is kept by its value.

Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft
Value-Based Decoding" (SVDD). The sampler is frozen, and the reward needs no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold
from jaxgen.method.chain import CHOICE, Chain, Reward, State, Steered
from jaxgen.steer.search import branch

Value = Callable[[State, jax.Array], jax.Array]


def svdd(
    chain: Chain, reward: Reward, *, proposals: int, alpha: float, value: Value | None = None
) -> Steered:
    """Samples of about p(x) exp(reward(x) / alpha) (Li et al. 2024).

    Each step draws `proposals` next states and keeps one with probability in proportion to
    exp(value / alpha). value(state, n) -> [B], the soft value alpha ln E[exp(reward / alpha)] of
    the state after n steps; None: the reward of the estimated sample (SVDD-PM), which costs the
    chain's `estimate_calls` for each proposal. After the last step it is the reward itself. Exact
    for exact values and many proposals. One proposal is the chain itself, bit for bit; image i
    depends on its own key alone.
    """
    if proposals < 1:
        raise invalid("steer.proposals", proposals, "an integer >= 1")
    if not alpha > 0:
        raise invalid("steer.alpha", alpha, "a temperature > 0")
    if proposals == 1:
        return Steered(chain.run, chain.calls)

    def values(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        if value is not None:
            return value(state, number)
        return reward(chain.estimate(keys, state, number))

    def fn(keys: jax.Array) -> jax.Array:
        count = keys.shape[0]
        numbers = jnp.arange(proposals)
        many = jax.vmap(lambda n: branch(keys, n))(numbers).reshape(-1)

        def propose(state: State, number: jax.Array) -> State:
            # One batch, proposal by proposal: [M B, ...].
            wide = jax.tree.map(lambda a: jnp.concatenate([a] * proposals) if a.ndim else a, state)
            return chain.step(many, wide, number)

        def keep(wide: State, score: jax.Array, number: jax.Array) -> State:
            choice_keys = fold(fold(keys, CHOICE), number)
            logits = score.reshape(proposals, count).T / alpha
            chosen = jax.vmap(jax.random.categorical)(choice_keys, logits)
            rows = chosen * count + jnp.arange(count)
            return jax.tree.map(lambda a: a[rows] if a.ndim else a, wide)

        def body(state: State, number: jax.Array) -> tuple[State, None]:
            wide = propose(state, number)
            return keep(wide, values(many, wide, number + 1), number), None

        last = jnp.asarray(chain.steps - 1)
        state = jax.lax.scan(body, chain.start(keys), jnp.arange(chain.steps - 1))[0]
        wide = propose(state, last)
        return chain.sample(keep(wide, reward(chain.sample(wide)), last))

    calls = chain.calls
    if value is None:
        calls += float(chain.estimate_calls[:-1].sum())
    return Steered(fn, proposals * calls)
