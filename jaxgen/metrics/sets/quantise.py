"""From floats to the bytes that are scored: what a user would save as a PNG."""

from __future__ import annotations

import numpy as np

from jaxgen.errors import invalid


def quantise(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8: floor(127.5 (x + 1) + 1/2), clipped. Truncating biases by -0.5.

    uint8 passes. Raises UsageError for values that are not finite: count them first.
    """
    if images.dtype == np.uint8:
        return images
    if not np.isfinite(images).all():
        raise invalid("images", "values that are not finite", "finite floats", "See `finite`.")
    return np.clip(np.floor(127.5 * (images + 1.0) + 0.5), 0, 255).astype(np.uint8)


def finite(images: np.ndarray) -> np.ndarray:
    """Whether each image [N, ...] has only finite values: bool [N]."""
    if not np.issubdtype(images.dtype, np.floating):
        return np.ones(len(images), bool)
    return np.isfinite(images.reshape(len(images), -1)).all(1)


def adm(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What ADM's evaluator reads of a .npz: arr_0 uint8 [N, H, W, 3], arr_1 labels int64 [N].

    images: bytes, or floats in [-1, 1]; grey is repeated. (Dhariwal & Nichol 2021, their
    `evaluator.py`.) Raises UsageError for images with alpha, of which it knows nothing.
    """
    pixels = quantise(images)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise invalid("--npz", f"adm, of images {pixels.shape[1:]}", "images of 1 or 3 channels")
    return {
        "arr_0": np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels,
        "arr_1": np.asarray(labels, np.int64),
    }
