"""Attention: softmax(q k^T scale + bias) v behind one function, whatever computes it.

Vaswani et al., "Attention Is All You Need" (2017), eq. 1; grouped queries: Ainslie et al., "GQA"
(2023).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxgen.errors import invalid, unknown
from jaxgen.ops import choice
from jaxgen.ops.cudnn import allowed, cudnn
from jaxgen.ops.heads import pallas_gpu, pallas_tpu
from jaxgen.ops.masks import Full, Index, Mask, Place, dense
from jaxgen.ops.plain import check, reference, xla

PLAIN: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "xla": xla,
    "xla_narrow": functools.partial(xla, narrow=True),
}
KERNELS: dict[str, Callable[..., jax.Array]] = {
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
    "cudnn": cudnn,
}
IMPLEMENTATIONS = (*PLAIN, *KERNELS, "auto")


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
    implementation: str = "auto",
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

    implementation: one of `PLAIN`, which compute on any platform; or of `KERNELS`, which need
    theirs, structure for a mask and, on several devices, a `shard_map` around them (with
    check_vma=False); or "auto" (`choice`), which needs nothing. Every derivative of each is
    right, forward and reverse. Raises UsageError for what an implementation does not do.
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown("attention.implementation", implementation, IMPLEMENTATIONS)
    check(q, k, v)
    place = Place(row, column, keys)
    structure = mask if isinstance(mask, Mask) else Full() if mask is None else None
    if structure is None and not place.trivial:
        raise invalid("attention.mask", "an array, with row, column or keys", "structure with them")
    if implementation == "auto":
        possible = structure is not None and allowed(q, v, structure, place, bias)
        implementation = choice.of_heads(q, k, mask, cudnn=possible)
    if implementation in KERNELS:
        if structure is None:
            raise invalid(f"attention.mask with {implementation}", "an array", "structure, None")
        kernel = KERNELS[implementation]
        return kernel(q, k, v, scale=scale, mask=structure, place=place, bias=bias)
    if structure is not None:
        mask = dense(structure, q.shape[2], k.shape[2], place)
    return PLAIN[implementation](q, k, v, scale=scale, mask=mask, bias=bias)
