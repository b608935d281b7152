"""Memorisation: how many samples are nearer to a training image than fresh images ever are.

images -> `nearest` distances -> `threshold` (of the test half) and `memorised_share`.
"""

from __future__ import annotations

import numpy as np

from jaxgen.data import Streamed
from jaxgen.errors import invalid
from jaxgen.metrics.neighbours import smallest


def flat(images: np.ndarray) -> np.ndarray:
    """Images [N, ...] as points float64 [N, d]; uint8 is scaled to [-1, 1]."""
    points = images.reshape(len(images), -1).astype(np.float64)
    return points / 127.5 - 1 if images.dtype == np.uint8 else points


def train_distances(images: np.ndarray, train: np.ndarray | Streamed) -> np.ndarray:
    """Euclidean distance [n] in pixels of each image [n, H, W, C] to the nearest of `train`."""
    return nearest_training(images, train)[0]


def nearest_training(
    images: np.ndarray, train: np.ndarray | Streamed
) -> tuple[np.ndarray, np.ndarray]:
    """`train_distances` [n], and the place [n] in `train` of the nearest, the first of equals."""
    points, first = flat(images), 0
    least, place = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for chunk in train.chunks() if isinstance(train, Streamed) else (train,):
        squared, index = (a[:, 0] for a in smallest(points, flat(chunk), 1))
        place = np.where(squared < least, first + index, place)
        least = np.minimum(squared, least)
        first += len(chunk)
    return np.sqrt(least), place


def ranked(distances: np.ndarray, count: int) -> np.ndarray:
    """Places [2 count] of the `count` smallest distances [n], then of `count` at even ranks.

    The second ones go from the smallest to the largest. All n, twice, where there are fewer.
    """
    order = np.argsort(distances, kind="stable")
    count = min(count, len(order))
    return np.concatenate([order[:count], order[np.linspace(0, len(order) - 1, count).astype(int)]])


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
