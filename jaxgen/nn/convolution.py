"""Convolution with explicit padding, as XLA's own or as one matrix product of gathered patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import unknown

Pad = tuple[tuple[int, int], tuple[int, int]]


def direct(x: jax.Array, kernel: jax.Array, pad: Pad, stride: int) -> jax.Array:
    """XLA's convolution: the one for accelerators."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patches(x: jax.Array, kernel: jax.Array, pad: Pad, stride: int) -> jax.Array:
    """The kernel's taps side by side, then one matrix product.

    XLA's convolutions inside a loop run about twenty times slower on CPU; matrix products do not.
    It takes height x width of the kernel times the memory.
    """
    rows, columns, features, out = kernel.shape
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    taps = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    flat = jnp.concatenate(taps, axis=-1).reshape(-1, rows * columns * features)
    return (flat @ kernel.reshape(-1, out)).reshape(x.shape[0], height, width, out)


LOWERINGS: dict[str, Callable[..., jax.Array]] = {"direct": direct, "patches": patches}


def convolve(
    x: jax.Array, kernel: jax.Array, *, pad: Pad, stride: int = 1, lowering: str = "patches"
) -> jax.Array:
    """x [B, H, W, C] with kernel [kh, kw, C, F] and zeros around: [B, H', W', F].

    pad: zeros (above, below), (left, right). Raises UsageError for an unknown lowering.
    """
    if lowering not in LOWERINGS:
        raise unknown("model.lowering", lowering, LOWERINGS)
    return LOWERINGS[lowering](x, kernel, pad, stride)


def lowered(lowering: str) -> Callable[..., jax.Array]:
    """`convolve` to images as large, by odd kernels, as nn.Conv takes `conv_general_dilated`."""

    def same(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        rows, columns = (n // 2 for n in kernel.shape[:2])
        pad = ((rows, rows), (columns, columns))
        return convolve(x, kernel, pad=pad, lowering=lowering)

    return same


def depthwise(x: jax.Array, kernel: jax.Array, *, lowering: str = "patches") -> jax.Array:
    """Each channel of x [B, H, W, C] with a kernel of its own, [h, w, 1, C], odd: [B, H, W, C].

    Zeros are around. "patches" is a sum of shifted images, which on CPU takes a hundredth of the
    time in a loop. Raises UsageError for an unknown lowering.
    """
    if lowering not in LOWERINGS:
        raise unknown("model.lowering", lowering, LOWERINGS)
    (rows, columns), (_, height, width, channels) = kernel.shape[:2], x.shape
    pad = [(n // 2, n // 2) for n in (rows, columns)]
    if lowering == "direct":
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )  # fmt: skip
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    shifts = [(i, j) for i in range(rows) for j in range(columns)]
    return sum(
        (x[:, i : i + height, j : j + width] * kernel[i, j, 0] for i, j in shifts[1:]),
        x[:, :height, :width] * kernel[0, 0, 0],
    )
