"""Attention of tokens as they leave one projection, on TPU: an image at a time, all on the chip.

Queries, keys and values of a head lie side by side in a row [.., (H + 2 G) D], so that heads of 72
are not padded to 128 in main memory (16 of them are 9 x 128), nothing is transposed or cut before
the kernel, and the gradient comes out as one matrix as well. QK-norm and rotary positions happen
between the load and the product. The backward pass computes the probabilities again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxgen.ops.kernel import estimate
from jaxgen.ops.masks import Full, Mask
from jaxgen.ops.tpu.head import MEMORY, dot, parameters, probabilities, scores_back, tiled

CHUNK = 2**18
"""Scores of a head that are computed at a time: 1 MiB in float32."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of one row: G groups, each of H / G queries, a key and a value of `size` numbers."""

    heads: int
    groups: int
    size: int

    @property
    def width(self) -> int:
        """Numbers of a row of queries, keys and values."""
        return (self.heads + 2 * self.groups) * self.size

    def query(self, head: int) -> slice:
        """Columns of a head's query."""
        shared = self.heads // self.groups
        return self._part(head // shared, head % shared)

    def key(self, group: int) -> slice:
        """Columns of a group's key."""
        return self._part(group, self.heads // self.groups)

    def value(self, group: int) -> slice:
        """Columns of a group's value."""
        return self._part(group, self.heads // self.groups + 1)

    def out(self, head: int) -> slice:
        """Columns of a head in the result."""
        return slice(head * self.size, (head + 1) * self.size)

    def sharing(self, group: int) -> range:
        """The heads of a group."""
        shared = self.heads // self.groups
        return range(group * shared, (group + 1) * shared)

    def _part(self, group: int, place: int) -> slice:
        begin = (group * (self.heads // self.groups + 2) + place) * self.size
        return slice(begin, begin + self.size)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the kernels are compiled for."""

    layout: Layout
    scale: float
    mask: Mask
    norm: bool
    rope: bool
    epsilon: float


def memory(layout: Layout, tokens: int, bytes_each: int) -> float:
    """Bytes on the chip that the backward kernel takes, the larger: two images at a time."""
    moved = 2 * tiled(tokens, layout.width) + tiled(tokens, layout.heads * layout.size)
    scores = 6 * max(CHUNK, tiled(16, tokens))
    return 2 * moved * bytes_each + 4 * (scores + 16 * tiled(tokens, layout.size))


def fits(layout: Layout, tokens: int, dtype: Any) -> bool:
    """Whether an image's tokens and their gradients fit on the chip."""
    known = jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
    return known and memory(layout, tokens, jnp.dtype(dtype).itemsize) <= MEMORY


def forward(
    qkv: jax.Array,
    scales: jax.Array | None,
    turns: jax.Array | None,
    settings: Settings,
    interpret: str,
) -> jax.Array:
    """Qkv [B, N, width], scales [2, D], turns [2, N, D] (see `_prepared`) -> [B, N, H D]."""
    (b, n, _), layout = qkv.shape, settings.layout
    out = jax.ShapeDtypeStruct((b, n, layout.heads * layout.size), qkv.dtype)
    given = [each for each in (scales, turns) if each is not None]
    scores = b * layout.heads * n * n
    return pl.pallas_call(
        functools.partial(_forward, settings=settings),
        grid=(b,),
        in_specs=[_image(qkv), *map(_whole, given)],
        out_specs=_image(out),
        out_shape=out,
        cost_estimate=estimate(2 * scores * layout.size, scores, qkv, out, *given),
        name="fused_attention",
        **parameters(("parallel",), memory(layout, n, qkv.dtype.itemsize), interpret),
    )(qkv, *given)


def backward(
    qkv: jax.Array,
    scales: jax.Array | None,
    turns: jax.Array | None,
    g: jax.Array,
    settings: Settings,
    interpret: str,
) -> tuple[jax.Array, jax.Array | None]:
    """Cotangents of qkv [B, N, width] and of scales [2, D] from those of the result."""
    (b, n, _), layout = qkv.shape, settings.layout
    given = [each for each in (scales, turns) if each is not None]
    results = [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)]
    if settings.norm:
        results.append(jax.ShapeDtypeStruct((b, 2, layout.size), jnp.float32))
    scores = b * layout.heads * n * n
    outputs = pl.pallas_call(
        functools.partial(_backward, settings=settings),
        grid=(b,),
        in_specs=[_image(qkv), _image(g), *map(_whole, given)],
        out_specs=[_image(each) for each in results],
        out_shape=results,
        cost_estimate=estimate(5 * scores * layout.size, scores, qkv, g, *given, *results),
        name="fused_attention_backward",
        **parameters(("parallel",), memory(layout, n, qkv.dtype.itemsize), interpret),
    )(qkv, g, *given)
    return outputs[0], outputs[1].sum(0) if settings.norm else None


def _image(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda i: (i, 0, 0))


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda i: (0,) * len(x.shape))


def _over_rows(tokens: int, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """`carry` through body(first row, rows, carry) for all rows, `CHUNK` scores at a time."""
    step = max(16, CHUNK // tokens // 16 * 16)
    if tokens <= step:
        return body(0, tokens, carry)
    whole = tokens // step
    each = lambda i, carry: body(pl.multiple_of(i * step, step), step, carry)
    carry = jax.lax.fori_loop(0, whole, each, carry)
    return body(whole * step, tokens % step, carry) if tokens % step else carry


def _seen(mask: Mask, begin: Any, rows: int, columns: int) -> jax.Array | None:
    if isinstance(mask, Full):
        return None
    row = begin + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
    return jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 1) <= mask.last(row)


def _swap(x: jax.Array) -> jax.Array:
    half = x.shape[1] // 2
    return jnp.concatenate([x[:, half:], x[:, :half]], axis=1)


def _prepared(x: jax.Array, scale: Any, turns: Any, epsilon: float) -> jax.Array:
    """Norm and rotation of queries or keys [N, D], float32.

    scale: [1, D] or None. turns: (cosines, sines) or None, each [N, D], cosines twice, sines
    negative and positive, so that (a, b) becomes (a, b) cosines + (b, a) sines.
    """
    x = x.astype(jnp.float32)
    if scale is not None:
        x = x * (jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale)
    return x if turns is None else x * turns[0] + _swap(x) * turns[1]


def _prepared_back(
    g: jax.Array, x: jax.Array, scale: Any, turns: Any, epsilon: float
) -> tuple[jax.Array, jax.Array | None]:
    """Pullback of `_prepared`: cotangents of x and of the scale [1, D]."""
    if turns is not None:
        g = g * turns[0] - _swap(g) * turns[1]
    if scale is None:
        return g, None
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    unit, scaled = x * inverse, g * scale
    back = inverse * (scaled - unit * (scaled * unit).mean(-1, keepdims=True))
    return back, (g * unit).sum(0, keepdims=True)


class _Loaded:
    """Queries, keys and values of one image as the kernels use them."""

    def __init__(self, qkv: Any, given: tuple[Any, ...], settings: Settings) -> None:
        self.qkv, self.s = qkv, settings
        self.scales = given[0] if settings.norm else None
        self.turns = given[-1] if settings.rope else None

    def arguments(self, which: int, rows: Any) -> tuple[Any, Any, float]:
        """Of `_prepared` for queries (0) or keys (1)."""
        scale = None if self.scales is None else self.scales[which : which + 1, :]
        turns = None if self.turns is None else (self.turns[0, rows, :], self.turns[1, rows, :])
        return scale, turns, self.s.epsilon

    def query(self, head: int, rows: Any) -> jax.Array:
        """Prepared and scaled."""
        x = self.qkv[rows, self.s.layout.query(head)]
        return (_prepared(x, *self.arguments(0, rows)) * self.s.scale).astype(x.dtype)

    def key(self, group: int) -> jax.Array:
        """Prepared."""
        x = self.qkv[:, self.s.layout.key(group)]
        return _prepared(x, *self.arguments(1, slice(None))).astype(x.dtype)


def _forward(qkv: Any, *rest: Any, settings: Settings) -> None:
    *given, out = rest
    loaded, layout = _Loaded(qkv, tuple(given), settings), settings.layout
    tokens = qkv.shape[0]
    for group in range(layout.groups):
        k, v = loaded.key(group), qkv[:, layout.value(group)]
        for head in layout.sharing(group):

            def attend(begin: Any, rows: int, _: Any, head=head, k=k, v=v) -> None:  # type: ignore
                at = pl.ds(begin, rows)
                scores = dot(loaded.query(head, at), k, (1, 1))
                p = probabilities(scores, _seen(settings.mask, begin, rows, tokens))
                out[at, layout.out(head)] = dot(p.astype(v.dtype), v, (1, 0)).astype(out.dtype)

            _over_rows(tokens, attend, None)


def _backward(qkv: Any, g: Any, *rest: Any, settings: Settings) -> None:
    given = rest[: settings.norm + settings.rope]
    dqkv, *dscales = rest[len(given) :]
    loaded, layout = _Loaded(qkv, given, settings), settings.layout
    tokens = qkv.shape[0]
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)

    def store(which: int, rows: Any, columns: slice, change: jax.Array) -> Any:
        """Cotangents of queries (0) or keys (1), and of their scale."""
        gradients = _prepared_back(change, qkv[rows, columns], *loaded.arguments(which, rows))
        dqkv[rows, columns] = gradients[0].astype(dqkv.dtype)
        return 0.0 if gradients[1] is None else gradients[1]

    totals = zeros((1, layout.size)), zeros((1, layout.size))
    for group in range(layout.groups):
        k, v = loaded.key(group), qkv[:, layout.value(group)]
        sums = zeros(k.shape), zeros(v.shape), totals[0]
        for head in layout.sharing(group):

            def attend(begin: Any, rows: int, sums: Any, head=head, k=k, v=v) -> Any:  # type: ignore
                at, (dk, dv, dscale) = pl.ds(begin, rows), sums
                q, dout = loaded.query(head, at), g[at, layout.out(head)]
                seen = _seen(settings.mask, begin, rows, tokens)
                p = probabilities(dot(q, k, (1, 1)), seen)
                ds = scores_back(p, dot(dout, v, (1, 1))).astype(q.dtype)
                dq = dot(ds, k, (1, 0)) * settings.scale
                dscale = dscale + store(0, at, layout.query(head), dq)
                return dk + dot(ds, q, (0, 0)), dv + dot(p.astype(q.dtype), dout, (0, 0)), dscale

            sums = _over_rows(tokens, attend, sums)
        dk, dv, dscale = sums
        dqkv[:, layout.value(group)] = dv.astype(dqkv.dtype)
        totals = dscale, totals[1] + store(1, slice(None), layout.key(group), dk)
    if dscales:
        dscales[0][...] = jnp.concatenate(totals, axis=0)


def turns(angles: jax.Array) -> jax.Array:
    """Angles [N, D / 2] as the kernels want them: float32 [2, N, D]."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = [jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)]
    return jnp.stack(pairs).astype(jnp.float32)
