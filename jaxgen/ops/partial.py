"""Attention to some of the keys, to be put together with attention to the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.ops.masks import Full, Index, Mask, Place, dense
from jaxgen.ops.plain import check, scores_of, weighted

EMPTY = -1e30
"""The log-sum-exp of a row that may see nothing: finite, so that differences are not NaN."""


def attention_with_lse(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask | None = None,
    bias: jax.Array | None = None,
    row: Index = 0,
    column: Index = 0,
    keys: Index | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and the logarithm of each row's sum of exponentials [B, H, N], float32.

    With it, attention to some of the keys can be put together with attention to others (`merge`).
    A row that may see nothing gives zeros and `EMPTY`. Plain XLA; every derivative.
    """
    check(q, k, v)
    wide = jnp.promote_types(jnp.float32, v.dtype)
    scores = scores_of(q, k, scale, wide, v.dtype)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    seen = dense(mask or Full(), q.shape[2], k.shape[2], Place(row, column, keys))
    if seen is not None:
        scores = jnp.where(seen, scores, EMPTY)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    lse = jnp.where(some, top + jnp.log(safe), EMPTY)[..., 0]
    return weighted((weights / safe).astype(v.dtype), v), lse


def merge(
    first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Attention of the same queries to two sets of keys, each (out, lse), as to their union."""
    (a, la), (b, lb) = first, second
    top = jax.lax.stop_gradient(jnp.maximum(la, lb))
    wa, wb = jnp.exp(la - top), jnp.exp(lb - top)
    total = wa + wb
    share = lambda w: (w / total)[..., None]
    return (a * share(wa) + b * share(wb)).astype(a.dtype), top + jnp.log(total)
