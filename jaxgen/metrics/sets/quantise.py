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
