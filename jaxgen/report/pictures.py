"""Grids of images, as arrays and PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgen import files
from jaxgen.errors import invalid
from jaxgen.method import Spec
from jaxgen.metrics.sets.quantise import quantise


def grid(images: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """A picture [H', W', 3] uint8 of images [N, H, W, C] in [-1, 1], row by row.

    scale: whole-number magnification (None: so that an image is at least 32 pixels wide).
    """
    pixels = quantise(np.asarray(images, np.float32))
    count, height, width, channels = pixels.shape
    if channels != 3:
        # One channel is grey; latents and the like show their first.
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    scale = scale or max(1, -(-32 // width))
    rows = -(-count // columns)
    cell_h, cell_w = height * scale, width * scale
    canvas = np.full(
        (rows * (cell_h + gap) + gap, columns * (cell_w + gap) + gap, 3), 255, np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = gap + (i // columns) * (cell_h + gap), gap + (i % columns) * (cell_w + gap)
        big = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + cell_h, left : left + cell_w] = big
    return canvas


def cut(picture: np.ndarray, height: int, width: int, *, gap: int = 1) -> np.ndarray:
    """The images [N, height, width, 3] uint8 of a picture that `grid` made at its own scale.

    White cells at the end are places that were left empty. Raises UsageError for a picture that is
    no grid of images of this size.
    """
    scale = max(1, -(-32 // width))
    rows, cut_h = divmod(picture.shape[0] - gap, height * scale + gap)
    columns, cut_w = divmod(picture.shape[1] - gap, width * scale + gap)
    if cut_h or cut_w or not rows or not columns:
        raise invalid("picture", picture.shape, f"a grid of images {height} x {width}")
    cells = picture[gap:, gap:].reshape(
        rows, height * scale + gap, columns, width * scale + gap, picture.shape[2]
    )
    images = cells[:, : height * scale : scale, :, : width * scale : scale].swapaxes(1, 2)
    images = images.reshape(-1, height, width, picture.shape[2])
    full = np.flatnonzero((images < 255).any((1, 2, 3)))
    return images[: full[-1] + 1 if len(full) else 0]


def picture(spec: Spec, samples: np.ndarray, columns: int) -> np.ndarray:
    """Samples as a picture [H, W, 3] uint8: a grid of images, or what a target makes of its own."""
    if spec.target is not None:
        image: np.ndarray = spec.target.picture(samples, columns)
        return image
    return grid(samples, columns)


def png(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] uint8 as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, making the folder."""
    files.write(path, png(picture))
