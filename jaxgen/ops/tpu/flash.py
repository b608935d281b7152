"""Attention on TPU for sequences of any length: blocks of keys with an online softmax.

Dao et al., "FlashAttention" (2022), alg. 1 and 4. Blocks that the mask hides are neither computed
nor, where queries are the outer loop, fetched. Of the softmax only the logarithms of its sums are
kept, as rows [B, H, 1, N]; the backward kernels work on transposed scores, along which such rows
lie as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgen.ops.kernel import Blocks, Settings, estimate
from jaxgen.ops.tpu.head import LOWEST, bias_spec, dot, parameters, seen, tiled

BLOCK = 512
"""Queries and keys of a block of scores, 1 MiB in float32."""
LANES = 128


class _Grid(Blocks):
    """`Blocks` of one call, and what of them its kernels ask."""

    def __init__(self, q: Any, k: Any, v: Any, bias: Any, settings: Settings) -> None:
        super().__init__(q, k, settings, *(min(a.shape[2], BLOCK) for a in (q, k)))
        self.bias = bias

    def reached(self, i: Any, place: Any) -> Any:
        """The last block of keys that a block of queries sees, at least 0."""
        last = self.last(i, place)
        return jnp.clip(jax.lax.div(last, np.int32(self.columns)), 0, self.steps[1] - 1)

    def visible(self, i: Any, j: Any, place: Any) -> Any:
        """Whether a block of scores holds any that count."""
        last = self.settings.mask.last(place[0] + (i + 1) * self.rows - 1)
        column = j * self.columns
        return (place[1] + column <= last) & (column < place[2])

    def seen(self, i: Any, j: Any, place: Any, *, turned: bool = False) -> jax.Array | None:
        """Which scores of a block count; None: all."""
        if not self.settings.masked and not self.m % self.columns:
            return None
        shape = (self.rows, self.columns)
        if not turned:
            return seen(self.settings.mask, place, i * self.rows, j * self.columns, shape)
        rows = i * self.rows + jax.lax.broadcasted_iota(jnp.int32, (1, shape[0]), 1)
        columns = j * self.columns + jax.lax.broadcasted_iota(jnp.int32, shape[::-1], 0)
        allowed = place[1] + columns <= self.settings.mask.last(place[0] + rows)
        return allowed & (columns < place[2])

    def memory(self, *widths: int) -> float:
        """Bytes on the chip, generously: blocks of float32 twice, six blocks of scores."""
        longest = max(self.rows, self.columns)
        blocks = sum(tiled(longest, width) for width in widths)
        biased = 0 if self.bias is None else 2 * tiled(self.rows, self.columns)
        return 4 * (3 * blocks + biased + 6 * tiled(self.rows, self.columns))


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    place: jax.Array,
    settings: Settings,
    interpret: str,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Out [B, H, N, E], and it and the log-sum-exp [B, H, 1, N] to be kept."""
    grid = _Grid(q, k, v, bias, settings)
    query, key, line, extra = _by_query(grid, bias)
    out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
    lse = jax.ShapeDtypeStruct((*q.shape[:2], 1, grid.n), jnp.float32)
    given = [each for each in (bias,) if each is not None]
    width = v.shape[3]
    outputs = pl.pallas_call(
        functools.partial(_forward, grid=grid, biased=bias is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*q.shape[:2], *grid.steps),
            in_specs=[query(q), key(k), key(v), *extra],
            out_specs=[query(out), line],
            scratch_shapes=[
                pltpu.VMEM((grid.rows, LANES), jnp.float32),
                pltpu.VMEM((grid.rows, LANES), jnp.float32),
                pltpu.VMEM((grid.rows, width), jnp.float32),
            ],
        ),
        out_shape=[out, lse],
        cost_estimate=estimate(
            grid.scores * (q.shape[3] + width), grid.scores, q, k, v, out, lse, *given
        ),
        name="flash_attention",
        **parameters(
            ("parallel",) * 3 + ("arbitrary",), grid.memory(q.shape[3], width, width), interpret
        ),
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
    wide = g.astype(jnp.float32) * out.astype(jnp.float32)
    lines = [lse, wide.sum(-1)[:, :, None]]
    grid = _Grid(q, k, v, bias, settings)
    given = [each for each in (bias,) if each is not None]
    memory = grid.memory(q.shape[3], q.shape[3], v.shape[3], v.shape[3])
    products = grid.scores * (q.shape[3] * 2 + v.shape[3])

    query, key, line, extra = _by_query(grid, bias)
    dq = pl.pallas_call(
        functools.partial(_backward_q, grid=grid, biased=bias is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*q.shape[:2], *grid.steps),
            in_specs=[query(q), key(k), key(v), query(g), line, line, *extra],
            out_specs=query(q),
            scratch_shapes=[pltpu.VMEM((grid.rows, q.shape[3]), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        cost_estimate=estimate(products, grid.scores, q, k, v, g, *lines, q, *given),
        name="flash_attention_backward_q",
        **parameters(("parallel",) * 3 + ("arbitrary",), memory, interpret),
    )(place, q, k, v, g, *lines, *given)

    query, key, line, extra = _by_key(grid, bias)
    results = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (k, v)]
    dk, dv = pl.pallas_call(
        functools.partial(_backward_kv, grid=grid, biased=bias is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(*k.shape[:2], grid.steps[1], grid.shared * grid.steps[0]),
            in_specs=[query(q), key(k), key(v), query(g), line, line, *extra],
            out_specs=[key(k), key(v)],
            scratch_shapes=[
                pltpu.VMEM((grid.columns, each.shape[3]), jnp.float32) for each in (k, v)
            ],
        ),
        out_shape=results,
        cost_estimate=estimate(
            products + grid.scores * v.shape[3], grid.scores, q, k, v, g, *lines, *results, *given
        ),
        name="flash_attention_backward_kv",
        **parameters(("parallel",) * 3 + ("arbitrary",), memory, interpret),
    )(place, q, k, v, g, *lines, *given)
    return dq, dk, dv


def _by_query(grid: _Grid, bias: Any) -> tuple[Any, Any, pl.BlockSpec, list[pl.BlockSpec]]:
    """Blocks where the grid is (image, head, queries, keys)."""

    def query(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, grid.rows, x.shape[3]), lambda b, h, i, j, place: (b, h, i, 0)
        )

    def key(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, grid.columns, x.shape[3]),
            lambda b, h, i, j, place: (b, jax.lax.div(h, shared), near(i, j, place), 0),
        )

    def near(i: Any, j: Any, place: Any) -> Any:
        return jnp.minimum(j, grid.reached(i, place))

    def at(b: Any, h: Any, i: Any, j: Any, place: Any) -> tuple[Any, ...]:
        return b, h, i, near(i, j, place)

    shared = np.int32(grid.shared)
    line = pl.BlockSpec((None, None, 1, grid.rows), lambda b, h, i, j, place: (b, h, 0, i))
    block = (1, grid.rows, grid.columns)
    return query, key, line, [] if bias is None else [bias_spec(bias, block, at)]


def _by_key(grid: _Grid, bias: Any) -> tuple[Any, Any, pl.BlockSpec, list[pl.BlockSpec]]:
    """Blocks where the grid is (image, key head, keys, head of the group and queries)."""

    def query(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, grid.rows, x.shape[3]),
            lambda b, g, j, t, place: (b, head(g, t), row(t), 0),
        )

    def key(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, grid.columns, x.shape[3]), lambda b, g, j, t, place: (b, g, j, 0)
        )

    def head(g: Any, t: Any) -> Any:
        return g * grid.shared + jax.lax.div(t, steps)

    def row(t: Any) -> Any:
        return jax.lax.rem(t, steps)

    def at(b: Any, g: Any, j: Any, t: Any, place: Any) -> tuple[Any, ...]:
        return b, head(g, t), row(t), j

    steps = np.int32(grid.steps[0])
    line = pl.BlockSpec(
        (None, None, 1, grid.rows), lambda b, g, j, t, place: (b, head(g, t), 0, row(t))
    )
    block = (1, grid.rows, grid.columns)
    return query, key, line, [] if bias is None else [bias_spec(bias, block, at)]


def _inside(x: jax.Array, begin: Any, length: int) -> jax.Array:
    """A block of rows with zeros past the end of the array, where there may be anything."""
    if not length % x.shape[0]:
        return x
    row = begin + jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
    return jnp.where(row < length, x, 0).astype(x.dtype)


def _forward(place: Any, q: Any, k: Any, v: Any, *rest: Any, grid: _Grid, biased: bool) -> None:
    bias = rest[0] if biased else None
    out, lse, top, total, sums = rest[int(biased) :]
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(grid.visible(i, j, place))
    def _() -> None:
        scores = dot(q[...], k[...], (1, 1)) * grid.settings.scale
        if bias is not None:
            scores = scores + bias[0].astype(jnp.float32)
        allowed = grid.seen(i, j, place)
        if allowed is not None:
            scores = jnp.where(allowed, scores, LOWEST)
        before = top[:, :1]
        now = jnp.maximum(before, scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - now)
        if allowed is not None:
            weights = jnp.where(allowed, weights, 0.0)
        shrink = jnp.exp(before - now)
        total[...] = jnp.broadcast_to(
            total[:, :1] * shrink + weights.sum(-1, keepdims=True), total.shape
        )
        top[...] = jnp.broadcast_to(now, top.shape)
        values = _inside(v[...], j * grid.columns, grid.m)
        sums[...] = sums[...] * shrink + dot(weights.astype(values.dtype), values, (1, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        some = total[...] > 0
        safe = jnp.where(some, total[...], 1.0)
        out[...] = (sums[...] / safe[:, :1]).astype(out.dtype)
        lse[...] = jnp.where(some, top[...] + jnp.log(safe), LOWEST).T[:1]


def _weights(
    place: Any, q: jax.Array, k: jax.Array, lse: Any, bias: Any, i: Any, j: Any, grid: _Grid
) -> jax.Array:
    """Probabilities, transposed: [columns, rows]."""
    scores = dot(k, q, (1, 1)) * grid.settings.scale
    if bias is not None:
        shape = (grid.rows, grid.columns)
        scores = scores + jnp.broadcast_to(bias[0].astype(jnp.float32), shape).T
    weights = jnp.exp(scores - lse)
    allowed = grid.seen(i, j, place, turned=True)
    return weights if allowed is None else jnp.where(allowed, weights, 0.0)


def _backward_q(place: Any, q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, *rest: Any,
                grid: _Grid, biased: bool) -> None:  # fmt: skip
    bias = rest[0] if biased else None
    dq, sums = rest[int(biased) :]
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.when(grid.visible(i, j, place))
    def _() -> None:
        keys = _inside(k[...], j * grid.columns, grid.m)
        values = _inside(v[...], j * grid.columns, grid.m)
        p = _weights(place, q[...], keys, lse[...], bias, i, j, grid)
        ds = p * (dot(values, g[...], (1, 1)) - delta[...])
        sums[...] += dot(ds.astype(keys.dtype), keys, (0, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        dq[...] = (sums[...] * grid.settings.scale).astype(dq.dtype)


def _backward_kv(place: Any, q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, *rest: Any,
                 grid: _Grid, biased: bool) -> None:  # fmt: skip
    bias = rest[0] if biased else None
    dk, dv, sum_k, sum_v = rest[int(biased) :]
    j, t = pl.program_id(2), pl.program_id(3)
    i = jax.lax.rem(t, np.int32(grid.steps[0]))

    @pl.when(t == 0)
    def _() -> None:
        sum_k[...] = jnp.zeros_like(sum_k)
        sum_v[...] = jnp.zeros_like(sum_v)

    @pl.when(grid.visible(i, j, place))
    def _() -> None:
        begin = i * grid.rows
        queries, dout = _inside(q[...], begin, grid.n), _inside(g[...], begin, grid.n)
        p = _weights(place, queries, k[...], lse[...], bias, i, j, grid)
        ds = p * (dot(v[...], dout, (1, 1)) - delta[...])
        if grid.n % grid.rows:
            # The sums of rows past the end are anything too.
            row = begin + jax.lax.broadcasted_iota(jnp.int32, (1, grid.rows), 1)
            p, ds = (jnp.where(row < grid.n, x, 0.0) for x in (p, ds))
        sum_k[...] += dot(ds.astype(queries.dtype), queries, (1, 0))
        sum_v[...] += dot(p.astype(dout.dtype), dout, (1, 0))

    @pl.when(t == pl.num_programs(3) - 1)
    def _() -> None:
        dk[...] = (sum_k[...] * grid.settings.scale).astype(dk.dtype)
        dv[...] = sum_v[...].astype(dv.dtype)
