"""Near access-freeness: samples no likelier than models that never saw them would have it.

Vyas, Kakade & Barak, "On Provable Copyright Protection for Generative Models" (2023), CP-k
(algorithm 4). Where the networks may be mixed at every element, CP-Delta needs no rejection: the
guidance `autoregressive.guidance.near_access`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Method, Sampler, Spec, fold, frozen_with, retrained

PyTree = Any
SAFE = 2**32 - 9
"""A sample's stream: what the safe model draws where nothing passed."""


def near_access(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    k: float = 5.0,
    tries: int = 8,
) -> Method:
    """Sample x with ln p(x | c) - ln q(x | c) <= k for every q of `networks`, in nats.

    networks: models of which each image is unknown to one at least (e.g. trained on halves). Of
    `tries` draws the first that passes is taken; where none does, a draw of the first network. For
    families whose likelihoods are exact. Training is as before. Raises UsageError: no networks, a
    method or network without exact likelihoods, tries < 1.
    """
    if not networks:
        raise invalid("config.networks", "nothing", "one safe model or more, by name")
    if tries < 1:
        raise invalid("unlearn.near_access.tries", tries, "tries >= 1")
    others = dict(networks)
    for name, m in {"method": method, **{n: o.method for n, o in others.items()}}.items():
        known = m.likelihood is not None and m.likelihood.exact and m.log_prob is not None
        if not known or m.sampler is None:
            given = f"{name}, without exact likelihoods"
            raise invalid("unlearn.near_access", given, "autoregressive models and flows")
    draw, first = method.sampler, next(iter(others))
    assert draw is not None
    known_draw = draw

    def excess(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        """The largest ln p / q [B]."""
        assert method.log_prob is not None
        ours = method.log_prob()(params, x, labels, keys)
        theirs = [
            o.method.log_prob()(params["frozen"][n], x, labels, keys) for n, o in others.items()
        ]
        return ours - jnp.min(jnp.stack(theirs), 0)

    @functools.wraps(known_draw)
    def sampler(**options: Any) -> Sampler:
        inner = known_draw(**options)
        safe = others[first].method.sampler()

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
            kept = safe.fn(params["frozen"][first], fold(keys, SAFE), labels)

            def attempt(state: Any, n: jax.Array) -> tuple[Any, None]:
                x, done = state
                own = fold(keys, n)
                new = inner.fn(params, own, labels)
                passes = ~done & (excess(params, new, labels, own) <= k)
                shape = (-1, *[1] * (new.ndim - 1))
                return (jnp.where(passes.reshape(shape), new, x), done | passes), None

            state = (kept, jnp.zeros(labels.shape, bool))
            return jax.lax.scan(attempt, state, jnp.arange(tries))[0][0]

        calls = tries * inner.calls + safe.calls
        return dataclasses.replace(
            inner, fn=fn, calls=calls, chain=None, denoiser=None, by_weight=None, log_probs=None
        )

    frozen = frozen_with(method, spec, networks, *networks)
    made = retrained(method, frozen=frozen)
    return dataclasses.replace(
        made, sampler=sampler, reads=(*method.reads, *others), label_error=None, log_prob=None,
        likelihood=None,
    )  # fmt: skip
