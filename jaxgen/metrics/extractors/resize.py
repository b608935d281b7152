"""How images reach a network's size: the resizers that published scores were computed with.

Scores differ by whole points between resizers (Parmar et al. 2022, "On Aliased Resizing and
Surprising Subtleties in GAN Evaluation"), so each is named for what it reproduces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid

Size = tuple[int, int]


@functools.partial(jax.jit, static_argnames="size")
def tf1_bilinear(images: jax.Array, size: Size) -> jax.Array:
    """TensorFlow 1's bilinear resize: [N, H, W, C] -> float32 [N, *size, C].

    Place i of the output is place i * H / height of the input: no half-pixel centres, and no
    filter when shrinking, so that most pixels of a large image count for nothing. The FID of Heusel
    et al. 2017 and everything that follows it (`resize_bilinear`, align_corners=False). uint8 or
    float; UsageError for other ranks and for empty images.
    """
    return _resized(images, size, _tf1_weights)


@functools.partial(jax.jit, static_argnames="size")
def pil_bicubic(images: jax.Array, size: Size) -> jax.Array:
    """Pillow's bicubic resize in floats: [N, H, W, C] -> float32 [N, *size, C] in [0, 255].

    Keys' kernel with a = -1/2 (Keys 1981), as wide as the input's pixels or the output's, whichever
    are larger (so it filters when shrinking), each channel in floats and clipped at the end: the
    "clean" resize of Parmar et al. 2022. uint8, or floats in 0..255; UsageError as `tf1_bilinear`.
    """
    return jnp.clip(_resized(images, size, _pil_weights), 0.0, 255.0)


def keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel (1981, eq. 15 has a = -1/2) at distances x: 1 at 0, none from 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resized(images: jax.Array, size: Size, weights: Callable[[int, int], np.ndarray]) -> jax.Array:
    """Rows and columns times matrices [target, source]; UsageError for wrong shapes."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise invalid("images", images.shape, "a shape (N, H, W, C) without zeros in H, W, C")
    if len(size) != 2 or min(size) < 1:
        raise invalid("size", size, "a height and a width of 1 or more")
    rows, columns = (
        weights(*pair).astype(np.float32) for pair in zip(images.shape[1:3], size, strict=True)
    )
    return jnp.einsum(
        "yh,nhwc,xw->nyxc",
        rows,
        images.astype(jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )


def _tf1_weights(source: int, target: int) -> np.ndarray:
    """[target, source]: how much of each input place is in each output place."""
    # Places in float32, as TensorFlow has them.
    place = np.arange(target, dtype=np.float32) * np.float32(source / target)
    low = place.astype(np.int64).clip(0, source - 1)
    high, fraction = np.minimum(low + 1, source - 1), place - low
    weights = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(weights, (rows, low), 1 - fraction)
    np.add.at(weights, (rows, high), fraction)
    return weights


def _pil_weights(source: int, target: int) -> np.ndarray:
    """[target, source]: the kernel around each output pixel's centre, of sum 1 within the image."""
    step = source / target
    centres = (np.arange(target) + 0.5) * step
    apart = np.arange(source) + 0.5 - centres[:, None]
    weights = keys(apart / max(step, 1.0), -0.5)
    return weights / weights.sum(1, keepdims=True)
