"""How images reach a network's size: the resizers that published scores were computed with.

Scores differ by whole points between resizers (Parmar et al. 2022, "On Aliased Resizing and
Surprising Subtleties in GAN Evaluation"), so each is named for what it reproduces.
"""

from __future__ import annotations

import functools

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
    _check(images, size)
    rows, columns = (_tf1_weights(*pair) for pair in zip(images.shape[1:3], size, strict=True))
    return jnp.einsum(
        "yh,nhwc,xw->nyxc",
        rows,
        images.astype(jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )


@functools.partial(jax.jit, static_argnames="size")
def pil_bicubic(images: jax.Array, size: Size) -> jax.Array:
    """Pillow's bicubic resize in floats: [N, H, W, C] -> float32 [N, *size, C] in [0, 255].

    Keys' kernel with a = -1/2 (Keys 1981), as wide as the input's pixels or the output's, whichever
    are larger (so it filters when shrinking), each channel in floats and clipped at the end: the
    "clean" resize of Parmar et al. 2022. uint8, or floats in 0..255; UsageError as `tf1_bilinear`.
    """
    _check(images, size)
    shape = (images.shape[0], *size, images.shape[3])
    resized = jax.image.resize(
        images.astype(jnp.float32),
        shape,
        "cubic",
        antialias=True,
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.clip(resized, 0.0, 255.0)


def _check(images: jax.Array, size: Size) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise invalid("images", images.shape, "a shape (N, H, W, C) without zeros in H, W, C")
    if len(size) != 2 or min(size) < 1:
        raise invalid("size", size, "a height and a width of 1 or more")


def _tf1_weights(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: how much of each input place is in each output place."""
    # Places in float32, as TensorFlow has them.
    place = np.arange(target, dtype=np.float32) * np.float32(source / target)
    low = place.astype(np.int64).clip(0, source - 1)
    high, fraction = np.minimum(low + 1, source - 1), place - low
    weights = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    np.add.at(weights, (rows, low), 1 - fraction)
    np.add.at(weights, (rows, high), fraction)
    return weights
