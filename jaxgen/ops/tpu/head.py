"""What every TPU kernel does with one head whose keys and values are on the chip.

Products of float32 are exact to float32 (the matrix unit would round them to bfloat16), those of
bfloat16 are summed in float32. The softmax is float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgen.ops.masks import Mask

LOWEST = -1e30
"""A score that counts for nothing: finite, so that differences are not NaN."""
MEMORY = 48 * 2**20
"""Bytes of on-chip memory that a kernel may ask for; a v5p core has 64 MiB, others more."""


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product of matrices over one axis of each, float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision, jnp.float32)


def probabilities(scores: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Softmax over the last axis of [N, M]; rows that see nothing give zeros."""
    if seen is not None:
        scores = jnp.where(seen, scores, LOWEST)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    return weights * (1 / (total if seen is None else jnp.where(total > 0, total, 1.0)))


def scores_back(p: jax.Array, dp: jax.Array) -> jax.Array:
    """The softmax's pullback: cotangents of scores from probabilities and their cotangents."""
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def parameters(grid: Any, bytes_needed: float, interpret: str) -> dict[str, Any]:
    """Arguments of `pallas_call`: what a grid's axes mean, the memory, or the interpreter."""
    if interpret:
        memory = pltpu.InterpretParams()
        return {"interpret": memory if interpret == "memory" else True}
    limit = max(16 * 2**20, int(bytes_needed))
    return {
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=grid, vmem_limit_bytes=min(limit, MEMORY)
        )
    }


def seen(mask: Mask, place: Any, row: Any, column: Any, shape: tuple[int, int]) -> jax.Array:
    """Which scores of a block count: bool of its shape.

    row, column: where the block begins among the given queries and keys; place: where those lie.
    """
    rows = row + jax.lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0)
    columns = column + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (place[1] + columns <= mask.last(place[0] + rows)) & (columns < place[2])


def tiled(rows: int, columns: int) -> int:
    """Numbers that a matrix takes on the chip, where rows come in 16s and columns in 128s."""
    return -(-rows // 16) * 16 * (-(-columns // 128) * 128)


def bias_spec(
    bias: Any, block: tuple[int, int, int], at: Callable[..., tuple[Any, ...]]
) -> pl.BlockSpec:
    """Blocks (heads, rows, columns) of a bias whose axes may be 1; at: a step's block numbers."""
    sizes = (None, *(min(b, n) if n > 1 else 1 for b, n in zip(block, bias.shape[1:], strict=True)))
    whole = [n == 1 for n in bias.shape]

    def index(*step: Any) -> tuple[Any, ...]:
        return tuple(0 if undivided else i for undivided, i in zip(whole, at(*step), strict=True))

    return pl.BlockSpec(sizes, index)
