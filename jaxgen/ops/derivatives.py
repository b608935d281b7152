"""Kernels that can be differentiated in every way, from a forward, a backward and a plain formula.

Neither of JAX's two rules suffices for a kernel with its own backward pass: `custom_vjp` has no
forward mode, which MeanFlow and consistency training need, and `custom_jvp` has no place for the
backward kernel. Here the tangent is a primitive of its own. It is linear in the tangents, is
computed by the formula, and its transpose is the backward kernel; derivatives of it and of the
backward kernel are the formula's. So the kernels compute values and gradients, in any order of
`jvp`, `grad`, `vmap`, `scan`, `checkpoint` and `shard_map`, and the formula all that remains.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = tuple[jax.Array, ...]


class Operation(Protocol):
    """A function of arrays with kernels for its value and its cotangents. Static and hashable.

    xs: what it can be differentiated by. aux: integers that it depends on besides. kept: what
    `forward` leaves for `backward`, functions of xs and aux.
    """

    def forward(self, xs: Arrays, aux: Arrays) -> tuple[jax.Array, Arrays]:
        """The value, and what is kept."""

    def backward(
        self, xs: Arrays, aux: Arrays, kept: Arrays, g: jax.Array, needed: tuple[bool, ...]
    ) -> Arrays:
        """Cotangents of xs from g, the value's; for what is not needed, anything of its shape."""

    def formula(self, xs: Arrays, aux: Arrays) -> jax.Array:
        """The value in plain operations."""


def apply(op: Operation, xs: Arrays, aux: Arrays = ()) -> jax.Array:
    """The operation's value, with every derivative."""
    return _forward(op, xs, aux)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(op: Operation, xs: Arrays, aux: Arrays) -> tuple[jax.Array, Arrays]:
    return op.forward(xs, aux)


@_forward.defjvp
def _forward_jvp(op: Operation, primals: Any, tangents: Any) -> Any:
    xs, aux = primals
    out, kept = _forward(op, xs, aux)
    sizes = (len(xs), len(aux), len(kept))
    change = tangent_p.bind(*xs, *aux, *kept, *tangents[0], op=op, sizes=sizes, axes=())
    # Whatever uses what is kept has a derivative of its own, by xs, that counts it already.
    return (out, kept), (change, jax.tree.map(_zeros, kept))


def _zeros(x: jax.Array) -> Any:
    return ad.instantiate_zeros(ad.Zero(jax.typeof(x).to_tangent_aval()))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _pullback(
    op: Operation,
    axes: tuple[Any, ...],
    needed: tuple[bool, ...],
    xs: Arrays,
    aux: Arrays,
    kept: Arrays,
    g: jax.Array,
) -> Arrays:
    def fn(xs: Arrays, aux: Arrays, kept: Arrays, g: jax.Array) -> Arrays:
        return tuple(op.backward(xs, aux, kept, g, needed))

    return _mapped(fn, axes, (len(xs), len(aux), len(kept)), g=True)(xs, aux, kept, g)


@_pullback.defjvp
def _pullback_jvp(
    op: Operation, axes: Any, needed: Any, primals: Any, tangents: Any
) -> tuple[Arrays, Arrays]:
    xs, aux, kept, g = primals
    sizes = (len(xs), len(aux), len(kept))

    def fn(xs: Arrays, g: jax.Array) -> Arrays:
        def pullback(xs: Arrays, aux: Arrays, kept: Arrays, g: jax.Array) -> Arrays:
            return jax.vjp(lambda xs: op.formula(xs, aux), xs)[1](g)[0]

        return _mapped(pullback, axes, sizes, g=True)(xs, aux, kept, g)

    change = jax.jvp(fn, (xs, g), (tangents[0], tangents[3]))[1]
    return _pullback(op, axes, needed, xs, aux, kept, g), change


def _mapped(fn: Any, axes: tuple[Any, ...], sizes: tuple[int, ...], *, g: bool = False) -> Any:
    """Fn of (xs, aux, kept, g or tangents) under the `vmap`s that the primitive went through."""
    for mapped_axes in axes:
        given = tuple(_cut(mapped_axes, sizes))
        fn = jax.vmap(fn, in_axes=(*given[:3], 0 if g else given[3]))
    return fn


def _cut(flat: Sequence[Any], sizes: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Xs, aux, kept and tangents out of one sequence."""
    a, b, c = sizes
    return [
        tuple(flat[i:j]) for i, j in ((0, a), (a, a + b), (a + b, a + b + c), (a + b + c, None))
    ]


# Operands: xs, aux, kept, tangents of xs, `sizes` of the first three. axes: for each vmap, from the
# first on, the axis of each operand (0 or None; the tangents' always 0).
tangent_p = Primitive("kernel_tangent")


def _tangent(*flat: jax.Array, op: Operation, sizes: tuple[int, ...], axes: Any) -> jax.Array:
    def tangent(xs: Arrays, aux: Arrays, kept: Arrays, ts: Arrays) -> jax.Array:
        return jax.jvp(lambda *xs: op.formula(xs, aux), xs, ts)[1]

    result: jax.Array = _mapped(tangent, axes, sizes)(*_cut(flat, sizes))
    return result


def _abstract(*flat: Any, op: Operation, sizes: tuple[int, ...], axes: Any) -> Any:
    xs, aux, kept, _ = _cut(flat, sizes)
    fn = _mapped(lambda xs, aux, kept, ts: op.formula(xs, aux), axes, sizes)
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in flat]
    out = jax.eval_shape(fn, *_cut(structs, sizes))
    return jax.core.ShapedArray(out.shape, out.dtype)


def _jvp(primals: Any, tangents: Any, *, op: Operation, sizes: Any, axes: Any) -> Any:
    params = dict(op=op, sizes=sizes, axes=axes)
    value = tangent_p.bind(*primals, **params)
    xs, aux, kept, ts = _cut(primals, sizes)
    dxs, _, _, dts = _cut(tangents, sizes)
    terms = []
    if not all(type(t) is ad.Zero for t in dts):
        given = [ad.instantiate_zeros(t) for t in dts]
        terms.append(tangent_p.bind(*xs, *aux, *kept, *given, **params))
    if not all(type(t) is ad.Zero for t in dxs):
        fn = lambda *xs: _tangent(*xs, *aux, *kept, *ts, **params)
        terms.append(jax.jvp(fn, xs, tuple(ad.instantiate_zeros(t) for t in dxs))[1])
    return value, sum(terms[1:], terms[0]) if terms else _zeros(value)


def _transpose(g: Any, *flat: Any, op: Operation, sizes: Any, axes: Any) -> list[Any]:
    xs, aux, kept, ts = _cut(flat, sizes)
    needed = tuple(ad.is_undefined_primal(t) for t in ts)
    constant = [None] * sum(sizes)
    if type(g) is ad.Zero:
        return constant + [ad.Zero(t.aval) if n else None for t, n in zip(ts, needed, strict=True)]
    cotangents = _pullback(op, axes, needed, xs, aux, kept, g)
    return constant + [each if n else None for each, n in zip(cotangents, needed, strict=True)]


def _batch(flat: Any, dims: Any, *, op: Operation, sizes: Any, axes: Any) -> tuple[Any, int]:
    size = next(a.shape[d] for a, d in zip(flat, dims, strict=True) if d is not None)
    first = sum(sizes)
    moved, batch_axes = [], []
    for place, (a, d) in enumerate(zip(flat, dims, strict=True)):
        if d is None and place < first:
            moved.append(a)
        else:
            moved.append(batching.bdim_at_front(a, d, size))
        batch_axes.append(None if d is None and place < first else 0)
    return tangent_p.bind(*moved, op=op, sizes=sizes, axes=(*axes, tuple(batch_axes))), 0


tangent_p.def_impl(lambda *flat, **params: jax.jit(functools.partial(_tangent, **params))(*flat))
tangent_p.def_abstract_eval(_abstract)
ad.primitive_jvps[tangent_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose
batching.primitive_batchers[tangent_p] = _batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_tangent, multiple_results=False))
