"""Attention on GPU by cuDNN, through `jax.nn.dot_product_attention`, with every derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.ops import choice, derivatives
from jaxgen.ops.derivatives import Arrays
from jaxgen.ops.masks import Causal, Full, Mask, Place, dense
from jaxgen.ops.plain import xla


@dataclasses.dataclass(frozen=True)
class Cudnn(derivatives.Operation):
    """Xs: q, k, v. library: what JAX is asked for, "cudnn" ("xla" runs anywhere, for tests)."""

    scale: float
    causal: bool
    library: str = "cudnn"

    def _call(self) -> Callable[..., jax.Array]:
        def fn(*xs: jax.Array) -> jax.Array:
            q, k, v = (x.swapaxes(1, 2) for x in xs)
            library: Any = self.library
            out = jax.nn.dot_product_attention(
                q, k, v, scale=self.scale, is_causal=self.causal, implementation=library
            )
            return out.swapaxes(1, 2)

        return fn

    def forward(self, xs: Arrays, aux: Arrays) -> tuple[jax.Array, Arrays]:
        """As `Operation.forward`; kept is what the library's own pullback holds."""
        out, pull = jax.vjp(self._call(), *xs)
        return out, tuple(jax.tree.leaves(pull))

    def backward(
        self, xs: Arrays, aux: Arrays, kept: Arrays, g: jax.Array, needed: tuple[bool, ...]
    ) -> Arrays:
        """As `Operation.backward`."""
        shape = jax.eval_shape(lambda *xs: jax.vjp(self._call(), *xs)[1], *xs)
        pull = jax.tree.unflatten(jax.tree.structure(shape), kept)
        cotangents: Arrays = pull(g)
        return cotangents

    def formula(self, xs: Arrays, aux: Arrays) -> jax.Array:
        """`xla`."""
        q, k, v = xs
        mask = dense(Causal(), q.shape[2], k.shape[2], Place()) if self.causal else None
        return xla(q, k, v, scale=self.scale, mask=mask)


def allowed(q: Any, v: Any, mask: Mask, place: Place, bias: Any) -> bool:
    """Whether cuDNN is asked for such arguments: 16-bit numbers, nothing or a causal mask."""
    size = q.shape[3]
    return (
        isinstance(mask, Full | Causal)
        and place.trivial
        and bias is None
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and size == v.shape[3]
        and size % 8 == 0
        and size <= 128
    )


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask,
    place: Place,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attention` by cuDNN. Raises UsageError for other platforms and what it does not do."""
    choice.demand("cudnn")
    if not allowed(q, v, mask, place, bias):
        raise invalid(
            "attention with cudnn",
            (q.shape, str(q.dtype), mask, "with bias" if bias is not None else "without bias"),
            "float16 or bfloat16, heads of a multiple of 8 to 128, Full or Causal from 0, no bias",
        )
    return derivatives.apply(Cudnn(scale, isinstance(mask, Causal)), (q, k, v))
