"""Attention on TPU where the keys and values of a head fit on the chip: no online softmax.

A step of the grid takes some rows of the queries that share a key head; the keys and values stay
where they are until the next head. The backward pass is one kernel, which computes the
probabilities again and sums the gradients of keys and values over the rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgen.ops.kernel import Settings, estimate
from jaxgen.ops.tpu.head import (
    MEMORY,
    bias_spec,
    dot,
    parameters,
    probabilities,
    scores_back,
    seen,
    tiled,
)

KEYS = 1024
"""Above so many keys `flash` takes over."""
CHUNK = 2**18
"""Scores that are computed at a time: 1 MiB in float32."""


def rows_at_a_time(rows: int, columns: int) -> int:
    """Rows of a step: all, or a multiple of 128."""
    step = max(128, CHUNK // columns // 128 * 128)
    return rows if rows <= step else step


def memory(q: Any, k: Any, v: Any) -> float:
    """Bytes on the chip that the backward kernel takes: blocks twice, sums, six sets of scores."""
    shared, rows = q.shape[1] // k.shape[1], rows_at_a_time(q.shape[2], k.shape[2])
    each = jnp.dtype(q.dtype).itemsize
    head = tiled(k.shape[2], k.shape[3]) + tiled(v.shape[2], v.shape[3])
    query = shared * (2 * tiled(rows, q.shape[3]) + tiled(rows, v.shape[3]))
    return 2 * each * (2 * head + query) + 4 * head + 4 * 6 * tiled(rows, k.shape[2])


def fits(q: Any, k: Any, v: Any) -> bool:
    """Whether the kernels take these shapes."""
    return k.shape[2] <= KEYS and memory(q, k, v) <= MEMORY


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    place: jax.Array,
    settings: Settings,
    interpret: str,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Out [B, H, N, E], and nothing kept. place: `masks.Place.array`."""
    grid, query, key, extra = _specs(q, k, v, bias)
    out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
    given = [each for each in (bias,) if each is not None]
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    output = pl.pallas_call(
        functools.partial(_forward, settings=settings, biased=bias is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[query(q), key(k), key(v), *extra],
            out_specs=query(out),
        ),
        out_shape=out,
        cost_estimate=estimate(scores * (q.shape[3] + v.shape[3]), scores, q, k, v, out, *given),
        name="attention",
        **parameters(("parallel",) * 3, memory(q, k, v), interpret),
    )(place, q, k, v, *given)
    return output, ()


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
    grid, query, key, extra = _specs(q, k, v, bias)
    given = [each for each in (bias,) if each is not None]
    results = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (q, k, v)]
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    products = scores * (3 * q.shape[3] + 2 * v.shape[3])
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward, settings=settings, biased=bias is not None, rows=q.shape[2]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[query(q), key(k), key(v), query(g), *extra],
            out_specs=[query(q), key(k), key(v)],
            scratch_shapes=[pltpu.VMEM(each.shape[2:], jnp.float32) for each in (k, v)],
        ),
        out_shape=results,
        cost_estimate=estimate(products, scores, q, k, v, g, *results, *given),
        name="attention_backward",
        **parameters(("parallel", "parallel", "arbitrary"), memory(q, k, v), interpret),
    )(place, q, k, v, g, *given)
    return dq, dk, dv


def _specs(q: Any, k: Any, v: Any, bias: Any) -> tuple[Any, Any, Any, list[pl.BlockSpec]]:
    """The grid (image, key head, rows), and the blocks of query-like and key-like arrays."""
    shared, rows = q.shape[1] // k.shape[1], rows_at_a_time(q.shape[2], k.shape[2])
    grid = (q.shape[0], k.shape[1], pl.cdiv(q.shape[2], rows))

    def query(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, shared, rows, x.shape[3]), at)

    def key(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, g, i, *_: (b, g, 0, 0))

    def at(b: Any, g: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, g, i, 0

    extra = [] if bias is None else [bias_spec(bias, (shared, rows, k.shape[2]), at)]
    return grid, query, key, extra


def _scores(
    q: jax.Array, k: jax.Array, bias: Any, head: int, place: Any, settings: Settings
) -> tuple[jax.Array, jax.Array | None]:
    """Scores [rows, M] of a head's queries, already scaled, and what of them is seen."""
    scores = dot(q, k, (1, 1))
    if bias is not None:
        scores = scores + bias[min(head, bias.shape[0] - 1)].astype(jnp.float32)
    if not settings.masked:
        return scores, None
    shape = (q.shape[0], k.shape[0])
    return scores, seen(settings.mask, place, pl.program_id(2) * shape[0], 0, shape)


def _scaled(q: jax.Array, scale: float) -> jax.Array:
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def _forward(
    place: Any, q: Any, k: Any, v: Any, *rest: Any, settings: Settings, biased: bool
) -> None:
    bias, out = (rest[0] if biased else None), rest[-1]
    for head in range(q.shape[0]):
        query = _scaled(q[head], settings.scale)
        p = probabilities(*_scores(query, k[...], bias, head, place, settings))
        out[head] = dot(p.astype(v.dtype), v[...], (1, 0)).astype(out.dtype)


def _backward(
    place: Any, q: Any, k: Any, v: Any, g: Any, *rest: Any,
    settings: Settings, biased: bool, rows: int,
) -> None:  # fmt: skip
    bias = rest[0] if biased else None
    dq, dk, dv, sum_k, sum_v = rest[int(biased) :]
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        sum_k[...] = jnp.zeros_like(sum_k)
        sum_v[...] = jnp.zeros_like(sum_v)

    for head in range(q.shape[0]):
        query, dout = _scaled(q[head], settings.scale), g[head]
        if rows % q.shape[1]:
            # Rows past the end hold anything; they must not enter the sums.
            row = step * q.shape[1] + jax.lax.broadcasted_iota(jnp.int32, (q.shape[1], 1), 0)
            query, dout = (jnp.where(row < rows, x, 0).astype(x.dtype) for x in (query, dout))
        p = probabilities(*_scores(query, k[...], bias, head, place, settings))
        ds = scores_back(p, dot(dout, v[...], (1, 1))).astype(query.dtype)
        dq[head] = (dot(ds, k[...], (1, 0)) * settings.scale).astype(dq.dtype)
        sum_k[...] += dot(ds, query, (0, 0))
        sum_v[...] += dot(p.astype(dout.dtype), dout, (0, 0))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        dk[...] = sum_k[...].astype(dk.dtype)
        dv[...] = sum_v[...].astype(dv.dtype)
