"""Products of rows with matrices of their groups: `jax.lax.ragged_dot`, under every transformation.

JAX's own can be batched along the first axis of all of its operands alone. Here the three products
that are each other's transposes are one primitive, and what `vmap` batches runs one after another.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Of rows [R, D], sorted by group, and kernels [E, D, F]: what is contracted, and whether of rows.
ROWS, TURNED, KERNELS = "rows", "turned", "kernels"
CONTRACTED = {ROWS: ((1,), (1,)), TURNED: ((1,), (2,)), KERNELS: ((0,), (0,))}
# (kind, operands) of the cotangents of the first and the second operand; "g": the output's.
TRANSPOSED = {
    ROWS: ((TURNED, "gb"), (KERNELS, "ag")),
    TURNED: ((ROWS, "gb"), (KERNELS, "ga")),
    KERNELS: ((TURNED, "bg"), (ROWS, "ag")),
}


def grouped_matmul(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """rows [R, D], the first sizes[0] of group 0 and so on, kernels [E, D, F] -> [R, F].

    sizes: int32 [E]. Rows that are left over give 0. An output depends on its own row alone.
    """
    out: jax.Array = grouped_p.bind(rows, kernels, sizes, kind=ROWS)
    return out


def _product(a: jax.Array, b: jax.Array, sizes: jax.Array, *, kind: str) -> jax.Array:
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(CONTRACTED[kind], ((), ())),
        lhs_ragged_dimensions=(0,),
        rhs_group_dimensions=() if kind == KERNELS else (0,),
    )
    out = jax.lax.ragged_dot_general(a, b, sizes, numbers)
    if kind == KERNELS:
        return out
    return jnp.where((jnp.arange(a.shape[0]) < sizes.sum())[:, None], out, 0)


def _abstract(a: Any, b: Any, sizes: Any, *, kind: str) -> Any:
    structs = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b, sizes))
    out = jax.eval_shape(lambda *xs: _product(*xs, kind=kind), *structs)
    return jax.core.ShapedArray(out.shape, out.dtype)


def _jvp(primals: Any, tangents: Any, *, kind: str) -> Any:
    a, b, sizes = primals
    out = grouped_p.bind(a, b, sizes, kind=kind)
    parts = [
        grouped_p.bind(*operands, sizes, kind=kind)
        for t, operands in ((tangents[0], (tangents[0], b)), (tangents[1], (a, tangents[1])))
        if not isinstance(t, ad.Zero)
    ]
    change = sum(parts[1:], parts[0]) if parts else ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, change


def _transpose(g: Any, a: Any, b: Any, sizes: Any, *, kind: str) -> Any:
    if isinstance(g, ad.Zero):
        return None, None, None
    number = 0 if ad.is_undefined_primal(a) else 1
    other, names = TRANSPOSED[kind][number]
    operands = [{"a": a, "b": b, "g": g}[name] for name in names]
    cotangent = grouped_p.bind(*operands, sizes, kind=other)
    return (cotangent, None, None) if number == 0 else (None, cotangent, None)


def _batch(operands: Any, axes: Any, *, kind: str) -> Any:
    moved = [a if n is None else jnp.moveaxis(a, n, 0) for a, n in zip(operands, axes, strict=True)]
    batched = [a for a, n in zip(moved, axes, strict=True) if n is not None]

    def one(own: Any) -> Any:
        rest = iter(own)
        whole = [a if n is None else next(rest) for a, n in zip(moved, axes, strict=True)]
        return grouped_p.bind(*whole, kind=kind)

    return jax.lax.map(one, batched), 0


grouped_p = Primitive("grouped_matmul")
grouped_p.def_impl(jax.jit(_product, static_argnames="kind"))
grouped_p.def_abstract_eval(_abstract)
mlir.register_lowering(grouped_p, mlir.lower_fun(_product, multiple_results=False))
ad.primitive_jvps[grouped_p] = _jvp
ad.primitive_transposes[grouped_p] = _transpose
batching.primitive_batchers[grouped_p] = _batch
