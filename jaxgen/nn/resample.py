"""Halve and double images by a separable filter, as sums of shifted slices (no convolution)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Name -> whether to use the longer filter. "box" is [1, 1] / 2: average pooling and nearest
# neighbour; "fir" is [1, 3, 3, 1] / 8 of StyleGAN2 and NCSN++ (Song et al. 2021, app. H).
FILTERS = {"box": False, "fir": True}


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
