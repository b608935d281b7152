"""Attention on GPU: Pallas kernels, compiled by Triton, with an online softmax.

Dao, "FlashAttention-2" (2023), alg. 1 and 2: a program holds some queries (for the gradients of
keys and values, some keys) and goes through the blocks of the others that it can see. Heads of a
size that is no power of two are padded on the chip alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxgen.ops.kernel import Blocks, Settings, estimate
from jaxgen.ops.masks import Full

BLOCK = 64
"""Queries and keys of a block of scores."""
LOG2 = math.log2(math.e)
LOWEST = -1e30


class _Blocks(Blocks):
    """`Blocks` of one call, and its arrays' elements by number."""

    def __init__(self, q: Any, k: Any, v: Any, settings: Settings) -> None:
        super().__init__(q, k, settings, *(min(BLOCK, _power(a.shape[2])) for a in (q, k)))
        self.size, self.values = q.shape[3], v.shape[3]

    def row(self, i: Any) -> jax.Array:
        """The numbers of the queries of a block."""
        return i * self.rows + jnp.arange(self.rows)

    def column(self, j: Any) -> jax.Array:
        """The numbers of the keys of a block."""
        return j * self.columns + jnp.arange(self.columns)

    def columns_of(self, i: Any, place: Any) -> tuple[Any, Any]:
        """The blocks of keys, from and to, that a block of queries sees."""
        if not self.settings.masked:
            return 0, self.steps[1]
        blocks = jax.lax.div(self.last(i, place) + self.columns, np.int32(self.columns))
        return 0, jnp.clip(blocks, 0, self.steps[1])

    def rows_of(self, j: Any, place: Any) -> tuple[Any, Any]:
        """The blocks of queries, from and to, that see a block of keys."""
        if not self.settings.masked or isinstance(self.settings.mask, Full):
            return 0, self.steps[0]
        first = self.settings.mask.first(place[1] + j * self.columns) - place[0]
        return jax.lax.div(jnp.maximum(first, 0), np.int32(self.rows)), self.steps[0]

    def seen(self, row: jax.Array, column: jax.Array, place: Any) -> jax.Array:
        """Which scores count, of rows [rows, 1] and columns [1, columns]."""
        inside = (row < self.n) & (column < self.m)
        if not self.settings.masked:
            return inside
        allowed = place[1] + column <= self.settings.mask.last(place[0] + row)
        return inside & allowed & (column < place[2])


def _power(n: int) -> int:
    """The next power of two, at least 16: what a block's side may be."""
    return max(16, 1 << (n - 1).bit_length())


def _load(ref: Any, lead: tuple[Any, ...], rows: jax.Array, length: int, width: int) -> jax.Array:
    """Rows of an array [.., length, width] with zeros past its end and to the next power of two."""
    columns = jnp.arange(_power(width))
    inside = (rows < length)[:, None] & (columns < width)[None]
    return triton.load(ref.at[(*lead, rows[:, None], columns[None])], mask=inside, other=0.0)


def _store(
    ref: Any, lead: tuple[Any, ...], rows: jax.Array, length: int, width: int, x: jax.Array
) -> None:
    columns = jnp.arange(_power(width))
    inside = (rows < length)[:, None] & (columns < width)[None]
    triton.store(ref.at[(*lead, rows[:, None], columns[None])], x.astype(ref.dtype), mask=inside)


def _line(ref: Any, lead: tuple[Any, ...], rows: jax.Array, length: int) -> jax.Array:
    """Numbers of rows, of an array [.., length]."""
    return triton.load(ref.at[(*lead, rows)], mask=rows < length, other=0.0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Float32; products of float32 exact to it, not rounded to TF32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _scores(
    q: jax.Array,
    k: jax.Array,
    bias: Any,
    at: tuple[Any, Any],
    row: Any,
    column: Any,
    sizes: _Blocks,
) -> jax.Array:
    """Scaled, biased scores in units of ln 2, for powers of two."""
    scores = _dot(q, k.T) * (sizes.settings.scale * LOG2)
    if bias is None:
        return scores
    b, h = (0 if n == 1 else i for n, i in zip(bias.shape[:2], at, strict=True))
    r = jnp.zeros_like(row) if bias.shape[2] == 1 else row
    c = jnp.zeros_like(column) if bias.shape[3] == 1 else column
    inside = (row < sizes.n)[:, None] & (column < sizes.m)[None]
    extra = triton.load(bias.at[b, h, r[:, None], c[None]], mask=inside, other=0.0)
    return scores + extra.astype(jnp.float32) * LOG2


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    place: jax.Array,
    settings: Settings,
    interpret: str,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Out [B, H, N, E], and it and the base-2 log-sum-exp [B, H, N] to be kept."""
    sizes = _Blocks(q, k, v, settings)
    out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
    lse = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    given = [each for each in (bias,) if each is not None]
    outputs = _call(
        functools.partial(_forward, sizes=sizes, biased=bias is not None),
        (sizes.steps[0], q.shape[1], q.shape[0]),
        [out, lse],
        "attention",
        sizes.scores * (sizes.size + sizes.values),
        sizes,
        interpret,
    )(place, q, k, v, *given)
    return outputs[0], tuple(outputs)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    place: jax.Array,
    kept: tuple[jax.Array, ...],
    g: jax.Array,
    settings: Settings,
    interpret: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of q, k and v."""
    out, lse = kept
    sizes = _Blocks(q, k, v, settings)
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    given = [each for each in (bias,) if each is not None]
    arguments = (place, q, k, v, g, lse, delta, *given)
    products = sizes.scores * (2 * sizes.size + sizes.values)
    (dq,) = _call(
        functools.partial(_backward_q, sizes=sizes, biased=bias is not None),
        (sizes.steps[0], q.shape[1], q.shape[0]),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        "attention_backward_q",
        products,
        sizes,
        interpret,
    )(*arguments)
    dk, dv = _call(
        functools.partial(_backward_kv, sizes=sizes, biased=bias is not None),
        (sizes.steps[1], k.shape[1], k.shape[0]),
        [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (k, v)],
        "attention_backward_kv",
        products + sizes.scores * sizes.values,
        sizes,
        interpret,
    )(*arguments)
    return dq, dk, dv


def _call(
    kernel: Callable[..., None], grid: tuple[int, ...], results: list[Any], name: str,
    products: float, sizes: _Blocks, interpret: str,
) -> Callable[..., Any]:  # fmt: skip
    def run(*arguments: jax.Array) -> Any:
        return pl.pallas_call(
            kernel,
            grid=grid,
            out_shape=results,
            cost_estimate=estimate(products, sizes.scores, *arguments, *results),
            compiler_params=triton.CompilerParams(
                num_warps=4 if max(sizes.size, sizes.values) <= 64 else 8, num_stages=2
            ),
            interpret=bool(interpret),
            name=name,
        )(*arguments)

    return run


def _forward(place: Any, q: Any, k: Any, v: Any, *rest: Any, sizes: _Blocks, biased: bool) -> None:
    bias, (out, lse) = (rest[0] if biased else None), rest[int(biased) :]
    i, h, b = (pl.program_id(axis) for axis in range(3))
    group = jax.lax.div(h, np.int32(sizes.shared))
    row = sizes.row(i)
    query = _load(q, (b, h), row, sizes.n, sizes.size)

    def step(j: Any, carry: Any) -> Any:
        top, total, sums = carry
        column = sizes.column(j)
        keys = _load(k, (b, group), column, sizes.m, sizes.size)
        scores = _scores(query, keys, bias, (b, h), row, column, sizes)
        seen = sizes.seen(row[:, None], column[None], place)
        scores = jnp.where(seen, scores, LOWEST)
        now = jnp.maximum(top, scores.max(1))
        weights = jnp.where(seen, jnp.exp2(scores - now[:, None]), 0.0)
        shrink = jnp.exp2(top - now)
        values = _load(v, (b, group), column, sizes.m, sizes.values)
        sums = sums * shrink[:, None] + _dot(weights.astype(values.dtype), values)
        return now, total * shrink + weights.sum(1), sums

    lines = jnp.full((sizes.rows,), LOWEST, jnp.float32), jnp.zeros((sizes.rows,), jnp.float32)
    sums = jnp.zeros((sizes.rows, _power(sizes.values)), jnp.float32)
    top, total, sums = jax.lax.fori_loop(*sizes.columns_of(i, place), step, (*lines, sums))
    safe = jnp.where(total > 0, total, 1.0)
    _store(out, (b, h), row, sizes.n, sizes.values, sums / safe[:, None])
    sum_of_row = jnp.where(total > 0, top + jnp.log2(safe), 0.0)
    triton.store(lse.at[b, h, row], sum_of_row, mask=row < sizes.n)


def _weights(
    query: jax.Array, keys: jax.Array, sums: jax.Array, bias: Any, at: tuple[Any, Any], row: Any,
    column: Any, place: Any, sizes: _Blocks,
) -> jax.Array:  # fmt: skip
    """Probabilities of a block, from the log-sum-exp of its rows."""
    scores = _scores(query, keys, bias, at, row, column, sizes)
    seen = sizes.seen(row[:, None], column[None], place)
    return jnp.where(seen, jnp.exp2(jnp.where(seen, scores - sums[:, None], LOWEST)), 0.0)


def _backward_q(
    place: Any, q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, *rest: Any,
    sizes: _Blocks, biased: bool,
) -> None:  # fmt: skip
    bias, dq = (rest[0] if biased else None), rest[-1]
    i, h, b = (pl.program_id(axis) for axis in range(3))
    group = jax.lax.div(h, np.int32(sizes.shared))
    row = sizes.row(i)
    query = _load(q, (b, h), row, sizes.n, sizes.size)
    dout = _load(g, (b, h), row, sizes.n, sizes.values)
    sums, inner = (_line(each, (b, h), row, sizes.n) for each in (lse, delta))

    def step(j: Any, total: jax.Array) -> jax.Array:
        column = sizes.column(j)
        keys = _load(k, (b, group), column, sizes.m, sizes.size)
        values = _load(v, (b, group), column, sizes.m, sizes.values)
        p = _weights(query, keys, sums, bias, (b, h), row, column, place, sizes)
        ds = p * (_dot(dout, values.T) - inner[:, None])
        return total + _dot(ds.astype(keys.dtype), keys)

    zeros = jnp.zeros((sizes.rows, _power(sizes.size)), jnp.float32)
    total = jax.lax.fori_loop(*sizes.columns_of(i, place), step, zeros)
    _store(dq, (b, h), row, sizes.n, sizes.size, total * sizes.settings.scale)


def _backward_kv(
    place: Any, q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, *rest: Any,
    sizes: _Blocks, biased: bool,
) -> None:  # fmt: skip
    bias, (dk, dv) = (rest[0] if biased else None), rest[int(biased) :]
    j, group, b = (pl.program_id(axis) for axis in range(3))
    column = sizes.column(j)
    keys = _load(k, (b, group), column, sizes.m, sizes.size)
    values = _load(v, (b, group), column, sizes.m, sizes.values)

    def of_head(h: Any, totals: Any) -> Any:
        def step(i: Any, totals: Any) -> Any:
            row = sizes.row(i)
            query = _load(q, (b, h), row, sizes.n, sizes.size)
            dout = _load(g, (b, h), row, sizes.n, sizes.values)
            sums, inner = (_line(each, (b, h), row, sizes.n) for each in (lse, delta))
            p = _weights(query, keys, sums, bias, (b, h), row, column, place, sizes)
            ds = p * (_dot(dout, values.T) - inner[:, None])
            by_keys = totals[0] + _dot(ds.astype(query.dtype).T, query)
            return by_keys, totals[1] + _dot(p.astype(dout.dtype).T, dout)

        return jax.lax.fori_loop(*sizes.rows_of(j, place), step, totals)

    zeros = [jnp.zeros((sizes.columns, _power(w)), jnp.float32) for w in (sizes.size, sizes.values)]
    first = group * sizes.shared
    by_keys, by_values = jax.lax.fori_loop(first, first + sizes.shared, of_head, tuple(zeros))
    _store(dk, (b, group), column, sizes.m, sizes.size, by_keys * sizes.settings.scale)
    _store(dv, (b, group), column, sizes.m, sizes.values, by_values)
