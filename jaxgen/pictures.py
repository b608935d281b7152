"""Grids of images, as arrays and PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgen.data import Source, Target
from jaxgen.metrics.quantise import quantise


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


def picture(source: Source, samples: np.ndarray, columns: int) -> np.ndarray:
    """Samples as a picture [H, W, 3] uint8: a grid of images, or what a target makes of its own."""
    if isinstance(source, Target):
        return source.picture(samples, columns)
    return grid(samples, columns)


def png(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] uint8 as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, making the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(picture))
