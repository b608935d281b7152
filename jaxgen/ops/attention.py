"""Attention: softmax(q k^T scale + bias) v behind one function, whatever computes it.

Vaswani et al., "Attention Is All You Need" (2017), eq. 1; grouped queries: Ainslie et al., "GQA"
(2023). The plain implementations are here, the kernels in `tpu` and `gpu`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.ops.masks import Full, Index, Mask, Place, dense

EMPTY = -1e30
"""The log-sum-exp of a row that may see nothing: finite, so that differences are not NaN."""


def _probabilities(scores: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32; rows that may see nothing give zeros, not NaN."""
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    probabilities = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.where(mask, probabilities, 0.0)


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """The formula, every step in float32 (float64 for float64 inputs) at full matmul precision.

    Slow and plain; what the other implementations are held against. Shapes as `attention`; mask:
    dense.
    """
    wide = jnp.promote_types(jnp.float32, v.dtype)
    groups = q.shape[1] // k.shape[1]
    k, wide_v = (jnp.repeat(each.astype(wide), groups, axis=1) for each in (k, v))
    high = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bhnd,bhmd->bhnm", q.astype(wide), k, precision=high) * scale
    out = jnp.einsum("bhnm,bhmd->bhnd", _probabilities(scores, mask, bias), wide_v, precision=high)
    return out.astype(v.dtype)


def xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    narrow: bool = False,
) -> jax.Array:
    """Two batched matmuls in the inputs' dtype around a float32 softmax. Shapes as `attention`.

    narrow ("xla_narrow"): scores are rounded to the inputs' dtype, which halves their traffic in
    bfloat16 and moves a score s by |s| / 512 at most there; in float32 nothing changes. mask:
    dense.
    """
    kept = q.dtype if narrow else jnp.promote_types(jnp.float32, v.dtype)
    probabilities = _probabilities(_scores(q, k, scale, kept, v.dtype), mask, bias)
    return _weighted(probabilities.astype(v.dtype), v)


def _scores(
    q: jax.Array, k: jax.Array, scale: float, kept: jnp.dtype, dtype: jnp.dtype
) -> jax.Array:
    """Scaled scores [B, H, N, M], wide. Queries that share keys are rows of one matrix."""
    (b, h, n, d), (groups, m) = q.shape, k.shape[1:3]
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, groups, h // groups * n, d)
    scores = jnp.matmul(rows, k.mT, preferred_element_type=kept)
    return scores.astype(jnp.promote_types(jnp.float32, dtype)).reshape(b, h, n, m)


def _weighted(probabilities: jax.Array, v: jax.Array) -> jax.Array:
    """Probabilities [B, H, N, M] times values [B, G, M, E] -> [B, H, N, E]."""
    (b, h, n, m), (groups, e) = probabilities.shape, (v.shape[1], v.shape[3])
    rows = probabilities.reshape(b, groups, h // groups * n, m)
    return jnp.matmul(rows, v).reshape(b, h, n, e)


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
    _check(q, k, v)
    wide = jnp.promote_types(jnp.float32, v.dtype)
    scores = _scores(q, k, scale, wide, v.dtype)
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
    return _weighted((weights / safe).astype(v.dtype), v), lse


def merge(
    one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Attention of the same queries to two sets of keys, each (out, lse), as to their union."""
    (a, la), (b, lb) = one, other
    top = jax.lax.stop_gradient(jnp.maximum(la, lb))
    wa, wb = jnp.exp(la - top), jnp.exp(lb - top)
    total = wa + wb
    share = lambda w: (w / total)[..., None]  # noqa: E731
    return (a * share(wa) + b * share(wb)).astype(a.dtype), top + jnp.log(total)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "xla": xla,
    "xla_narrow": functools.partial(xla, narrow=True),
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask | jax.Array | None = None,
    bias: jax.Array | None = None,
    row: Index = 0,
    column: Index = 0,
    keys: Index | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    q [B, H, N, D], k [B, G, M, D], v [B, G, M, E] -> [B, H, N, E] in v's dtype. G divides H, and
    query head h attends to the keys of head h // (H / G). Heads come before tokens: the layout of
    plain batched matmuls, which was the fastest on CPU.

    scale: multiplies q k^T; usually D ** -0.5. It has no default because defaults differ between
    libraries (1.0 in several kernels) and a wrong one fails silently.
    mask: structure (`jaxgen.ops.masks`), or bool, broadcastable to [B, H, N, M], True where
    attending is allowed. A row with nothing allowed gives zeros. bias: added to the scaled scores,
    broadcastable likewise. row, column, keys: see `masks.Place`; with a mask that is structure.
    implementation: one of `IMPLEMENTATIONS`; another name is a UsageError, as are shapes that do
    not fit.
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown("attention.implementation", implementation, IMPLEMENTATIONS)
    _check(q, k, v)
    place = Place(row, column, keys)
    if mask is None or isinstance(mask, Mask):
        mask = dense(mask or Full(), q.shape[2], k.shape[2], place)
    elif not place.trivial:
        raise invalid("attention.mask", "an array, with row, column or keys", "structure with them")
    return IMPLEMENTATIONS[implementation](q, k, v, scale=scale, mask=mask, bias=bias)


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    heads, groups = q.shape[1], k.shape[1]
    fits = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and k.shape[:3] == v.shape[:3]
    if not fits or not groups or heads % groups:
        raise invalid(
            "attention: shapes of q, k, v",
            (q.shape, k.shape, v.shape),
            "[B, H, N, D], [B, G, M, D], [B, G, M, E], G a divisor of H",
        )
