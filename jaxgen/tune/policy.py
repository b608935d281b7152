"""A sampler as a policy: what it draws, and the probability of every draw.

Of tokens of autoregressive models, of steps of masked ones, of the Gaussian steps of diffusion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Method

PyTree = Any
ALLOWED = (
    "a sampler that says its draws' probabilities: autoregressive without truncation and guidance, "
    "masked with solver='random' or 'ancestral', diffusion with solver='ancestral.ddpm' or another "
    "that draws"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """rollout(params, keys [B], labels [B]) -> (samples [B, *shape], draws, a pytree [B, ...]).

    log_probs(params, draws, labels) -> ln of each draw's probability [B, N].
    """

    rollout: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]
    log_probs: Callable[[PyTree, PyTree, jax.Array], jax.Array]


def policy(model: Method, sample: Mapping[str, Any], option: str) -> Policy:
    """The model's sampler with these options. Raises UsageError where it says no probabilities."""
    sampler = None if model.sampler is None else model.sampler(**sample)
    if sampler is not None and sampler.log_probs is not None:
        draw, known = sampler.fn, sampler.log_probs

        def once(params: PyTree, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
            x = draw(params, keys, labels)
            return x, x

        return Policy(once, known)
    taken = None if sampler is None else sampler.chain
    if taken is None or taken(None, jnp.int32(0)).log_prob is None:
        raise invalid(option, dict(sample), ALLOWED)
    chain = taken

    def rollout(params: PyTree, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        steps = chain(params, labels)
        states = steps.states(keys)
        return steps.sample(jax.tree.map(lambda a: a[:, -1], states)), (keys, states)

    def log_probs(params: PyTree, draws: PyTree, labels: jax.Array) -> jax.Array:
        return chain(params, labels).log_probs(*draws)

    return Policy(rollout, log_probs)
