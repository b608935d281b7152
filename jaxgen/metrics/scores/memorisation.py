"""Memorisation: how many samples are nearer to a training image than fresh images ever are.

images -> `nearest` distances -> `threshold` (of the test half) and `memorised_share`.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxgen.data import Streamed
from jaxgen.errors import invalid
from jaxgen.metrics.neighbours import nearest


def flat(images: np.ndarray) -> np.ndarray:
    """Images [N, ...] as points float64 [N, d]; uint8 is scaled to [-1, 1]."""
    points = images.reshape(len(images), -1).astype(np.float64)
    return points / 127.5 - 1 if images.dtype == np.uint8 else points


def train_distances(images: np.ndarray, train: np.ndarray | Streamed) -> np.ndarray:
    """Euclidean distance [n] in pixels of each image [n, H, W, C] to the nearest of `train`."""
    if isinstance(train, Streamed):
        points = flat(images)
        return functools.reduce(
            np.minimum, (nearest(points, flat(chunk)) for chunk in train.chunks())
        )
    return nearest(flat(images), flat(train))


def threshold(test_distances: np.ndarray, percentile: float = 1.0) -> float:
    """The distance below which only `percentile` % of fresh images come to a training image."""
    if len(test_distances) * percentile < 100:
        raise invalid(
            "test images", len(test_distances), f"{100 / percentile:.0f} or more for a percentile"
        )
    return float(np.percentile(test_distances, percentile))


def memorised_share(sample_distances: np.ndarray, threshold: float) -> float:
    """The share of samples nearer to a training image than `threshold`."""
    return float((sample_distances < threshold).mean())
