"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, eq. 6).

features -> `moments` (float64, mergeable) -> `frechet_distance`. With features of Inception-v3 this
is FID; with any others it is called by their name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxgen.errors import invalid

# Rows that are in float64 at a time.
_BLOCK = 8192


class Moments(NamedTuple):
    """Sufficient statistics of features, float64.

    size: N. mean [d]. scatter [d, d]: the sum over examples of (f - mean)(f - mean)^T.
    """

    size: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Covariance [d, d] with divisor N - 1."""
        return self.scatter / (self.size - 1)


def moments(features: np.ndarray) -> Moments:
    """Moments of features [N, d], N >= 1, about their own mean."""
    if features.ndim != 2 or not len(features):
        raise invalid("features", features.shape, "a shape [N, d] with N >= 1")
    starts = range(0, len(features), _BLOCK)
    mean = sum(features[i : i + _BLOCK].sum(0, dtype=np.float64) for i in starts) / len(features)
    scatter = np.zeros((features.shape[1],) * 2)
    for i in starts:
        centred = features[i : i + _BLOCK] - mean
        scatter += centred.T @ centred
    return Moments(len(features), mean, scatter)


def merge(pieces: Iterable[Moments]) -> Moments:
    """Moments of the union of shards (Chan, Golub & LeVeque 1979): no large sums of squares."""
    return functools.reduce(_merge_two, pieces)


def _merge_two(left: Moments, right: Moments) -> Moments:
    count = left.size + right.size
    apart = right.mean - left.mean
    mean = left.mean + apart * (right.size / count)
    between = np.outer(apart, apart) * (left.size * right.size / count)
    return Moments(count, mean, left.scatter + right.scatter + between)


def gaussian_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (R^T C2 R)^1/2) for any R with R R^T = C1, by eigenvalues of
    symmetric matrices in float64: never complex, and right for singular covariances. R is the
    Cholesky factor of C1, or its symmetric root where it is singular.
    """
    known = np.asarray(covariance1, np.float64)
    try:
        root = np.linalg.cholesky(known)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(known)
        root = vectors * np.sqrt(np.maximum(values, 0))
    product = root.T @ np.asarray(covariance2, np.float64) @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    apart = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    return float(apart @ apart + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def frechet_distance(real: Moments, generated: Moments) -> float:
    """Frechet distance of two sets of features; symmetric, 0 for equal moments.

    Raises UsageError for fewer than d + 1 examples on a side, where the covariance is singular and
    the distance says more about the count than about the images.
    """
    need = len(real.mean) + 1
    for option, side in (("real features", real), ("generated features", generated)):
        if side.size < need:
            raise invalid(option, f"{side.size} images", f"{need} or more for a Frechet distance")
    return gaussian_distance(real.mean, real.covariance, generated.mean, generated.covariance)
