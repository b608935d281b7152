"""Filter, halve and double images by separable filters: sums of shifted slices, no convolution."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

# Name -> whether to use the longer filter. "box" is [1, 1] / 2: average pooling and nearest
# neighbour; "fir" is [1, 3, 3, 1] / 8 of StyleGAN2 and NCSN++ (Song et al. 2021, app. H).
FILTERS = {"box": False, "fir": True}
FIR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def _pad(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])


def _take(x: jax.Array, axis: int, start: int, stop: int | None, step: int) -> jax.Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def margin(filter: str) -> int:
    """How many rows and columns beyond each edge `halve` reads."""
    return int(FILTERS[filter])


def halve(x: jax.Array, filter: str = "box", *, padded: bool = False) -> jax.Array:
    """Filter and keep every other row and column: [B, H, W, C] -> [B, H / 2, W / 2, C].

    padded: x has a `margin` of its own around it, in the place of zeros.
    """
    for axis in (1, 2):
        if FILTERS[filter]:
            p = x if padded else _pad(x, axis)
            a, b, c, d = (_take(p, axis, i, -3 + i or None, 2) for i in (0, 1, 2, 3))
            x = (a + d + 3 * (b + c)) / 8
        else:
            x = (_take(x, axis, 0, None, 2) + _take(x, axis, 1, None, 2)) / 2
    return x


def double(x: jax.Array, filter: str = "box") -> jax.Array:
    """Insert zeros and filter, means kept: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    for axis in (1, 2):
        if FILTERS[filter]:
            p = _pad(x, axis)
            even = (_take(p, axis, 0, -2, 1) + 3 * x) / 4
            odd = (3 * x + _take(p, axis, 2, None, 1)) / 4
            shape = [2 * n if a == axis else n for a, n in enumerate(x.shape)]
            x = jnp.stack([even, odd], axis + 1).reshape(shape)
        else:
            x = jnp.repeat(x, 2, axis)
    return x


def upfirdn(
    x: jax.Array, taps: tuple[float, ...], up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Insert up - 1 zeros after each row and column, pad (or cut), filter, keep one of `down`.

    x [B, H, W, C]; taps [K] of a separable filter. A side of N becomes ceil((N up + pad - K + 1) /
    down). As sums of shifted slices, so that it has every derivative.
    """
    for axis in (1, 2):
        edges = [(0, 0, 0)] * 4
        edges[axis] = (pad[0], pad[1] + up - 1, up - 1)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        count = x.shape[axis] - len(taps) + 1
        parts = [jax.lax.slice_in_dim(x, n, n + count, down, axis) for n in range(len(taps))]
        x = functools.reduce(jnp.add, map(operator.mul, taps[::-1], parts))
    return x
