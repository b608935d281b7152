"""Truncated sampling as pure functions of logits: what is cut gets -inf.

All take logits [..., V] and return logits [..., V]. Elements that are equally good at the threshold
are kept together, so a uniform distribution is never cut. Sums of probabilities count as reaching a
mass from 1e-6 below it on, which is float32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

ROUNDING = 1e-6


def scale(logits: jax.Array, temperature: float) -> jax.Array:
    """logits / temperature: below 1 sharper, above 1 flatter."""
    return logits if temperature == 1 else logits / temperature


def top_k(logits: jax.Array, count: int) -> jax.Array:
    """Keep the `count` most probable."""
    least = jax.lax.top_k(logits, count)[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def nucleus(logits: jax.Array, mass: float) -> jax.Array:
    """Keep the fewest most probable whose mass reaches `mass` (Holtzman et al. 2020, eq. 2)."""
    return fewest(logits, -jax.nn.log_softmax(logits, axis=-1), mass)


def typical(logits: jax.Array, mass: float) -> jax.Array:
    """Keep the fewest whose information is nearest to the entropy and whose mass reaches `mass`.

    Information is -ln p, its expectation the entropy (Meister et al. 2023, eq. 8): the mode is cut
    where it says less than is usual.
    """
    information = -jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(-information)
    # 0 x inf is 0: what an earlier cut took has no part in the entropy.
    entropy = jnp.where(p > 0, p * information, 0.0).sum(-1, keepdims=True)
    return fewest(logits, jnp.abs(information - entropy), mass)


def fewest(logits: jax.Array, cost: jax.Array, mass: float) -> jax.Array:
    """Keep the cheapest by `cost` whose mass reaches `mass`, and what costs as much as the last."""
    if mass >= 1:
        return logits
    order = jnp.argsort(cost, axis=-1)
    p = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    kept = (before < mass - ROUNDING).sum(-1, keepdims=True)
    kept = jnp.maximum(kept, 1)
    most = jnp.take_along_axis(jnp.take_along_axis(cost, order, axis=-1), kept - 1, axis=-1)
    return jnp.where(cost <= most, logits, -jnp.inf)


def truncation(
    levels: int, *, temperature: float, top_k: int, top_p: float, typical: float
) -> Callable[[jax.Array], jax.Array]:
    """All of them in turn: temperature, top-k (0: all), nucleus (1: all), typical (1: all).

    Raises UsageError: temperature <= 0, top_k outside 0 .. levels, masses outside (0, 1].
    """
    if not temperature > 0:
        raise invalid("sample.temperature", temperature, "temperature > 0", "top_k=1 is greedy.")
    if not 0 <= top_k <= levels:
        raise invalid("sample.top_k", top_k, f"0 (all) .. {levels}, the number of values")
    for name, mass in (("top_p", top_p), ("typical", typical)):
        if not 0 < mass <= 1:
            raise invalid(f"sample.{name}", mass, f"0 < {name} <= 1 (1: all)")

    def apply(logits: jax.Array) -> jax.Array:
        logits = scale(logits, temperature)
        if top_k:
            logits = _top_k(logits, top_k)
        return _typical(nucleus(logits, top_p), typical)

    return apply


_top_k, _typical = top_k, typical
