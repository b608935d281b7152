"""Attention: softmax(q k^T scale + bias) v behind one function, whatever computes it.

Vaswani et al., "Attention Is All You Need" (2017), eq. 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import unknown


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

    Slow and plain; what the other implementations are held against. Shapes as `attention`.
    """
    wide = jnp.promote_types(jnp.float32, v.dtype)
    q, k, wide_v = q.astype(wide), k.astype(wide), v.astype(wide)
    high = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, precision=high) * scale
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
    bfloat16 and moves a score s by |s| / 512 at most there; in float32 nothing changes.
    """
    wide = jnp.promote_types(jnp.float32, v.dtype)
    kept = q.dtype if narrow else wide
    scores = jnp.matmul(q * jnp.asarray(scale, q.dtype), k.mT, preferred_element_type=kept)
    return jnp.matmul(_probabilities(scores.astype(wide), mask, bias).astype(v.dtype), v)


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
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    q [B, H, N, D], k [B, H, M, D], v [B, H, M, E] -> [B, H, N, E] in v's dtype. Heads come before
    tokens: the layout of plain batched matmuls, which was the fastest on CPU.

    scale: multiplies q k^T; usually D ** -0.5. It has no default because defaults differ between
    libraries (1.0 in several kernels) and a wrong one fails silently.
    mask: bool, broadcastable to [B, H, N, M]; True where attending is allowed. A row with nothing
    allowed gives zeros. bias: added to the scaled scores, broadcastable likewise.
    implementation: one of `IMPLEMENTATIONS`; another name is a UsageError.
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown("attention.implementation", implementation, IMPLEMENTATIONS)
    return IMPLEMENTATIONS[implementation](q, k, v, scale=scale, mask=mask, bias=bias)
