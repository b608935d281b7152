"""Attention in plain operations: the formula, and the same in two matmuls around a softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid


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
    probabilities = _probabilities(scores_of(q, k, scale, kept, v.dtype), mask, bias)
    return weighted(probabilities.astype(v.dtype), v)


def scores_of(
    q: jax.Array, k: jax.Array, scale: float, kept: jnp.dtype, dtype: jnp.dtype
) -> jax.Array:
    """Scaled scores [B, H, N, M], wide. Queries that share keys are rows of one matrix."""
    (b, h, n, d), (groups, m) = q.shape, k.shape[1:3]
    rows = (q * jnp.asarray(scale, q.dtype)).reshape(b, groups, h // groups * n, d)
    scores = jnp.matmul(rows, k.mT, preferred_element_type=kept)
    return scores.astype(jnp.promote_types(jnp.float32, dtype)).reshape(b, h, n, m)


def weighted(probabilities: jax.Array, v: jax.Array) -> jax.Array:
    """Probabilities [B, H, N, M] times values [B, G, M, E] -> [B, H, N, E]."""
    (b, h, n, m), (groups, e) = probabilities.shape, (v.shape[1], v.shape[3])
    rows = probabilities.reshape(b, groups, h // groups * n, m)
    return jnp.matmul(rows, v).reshape(b, h, n, e)


def check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Raise UsageError where the shapes of q, k and v do not fit each other."""
    heads, groups = q.shape[1], k.shape[1]
    fits = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and k.shape[:3] == v.shape[:3]
    if not fits or not groups or heads % groups:
        raise invalid(
            "attention: shapes of q, k, v",
            (q.shape, k.shape, v.shape),
            "[B, H, N, D], [B, G, M, D], [B, G, M, E], G a divisor of H",
        )
