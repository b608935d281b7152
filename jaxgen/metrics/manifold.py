"""Precision, recall, density and coverage by nearest neighbours in feature space.

features -> `Manifold` (features and radii) -> `precision`, `recall`, `density`, `coverage`.
A manifold is the union of balls around its points, each reaching to the k-th nearest other point.
strict: a point on the very rim of a ball is outside. Kynkaanniemi et al. 2019 (k = 3), ADM and
StyleGAN count it in; Naeem et al. 2020 (k = 5) do not. On exact duplicates radii are 0 and a strict
count is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.neighbours import distance_blocks, radii


class Manifold(NamedTuple):
    """Points float [n, d], the squared radius [n] of the ball around each, and the k it is of."""

    points: np.ndarray
    radii: np.ndarray
    k: int


def manifold(features: np.ndarray, *, k: int) -> Manifold:
    """The k-nearest-neighbour manifold of features [n, d]; UsageError unless 1 <= k < n."""
    return Manifold(np.asarray(features, np.float64), radii(features, k), k)


def _inside(
    features: np.ndarray, balls: Manifold, strict: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, bool [rows, n]): whether each feature lies in each ball, a block at a time."""
    for rows, squared in distance_blocks(np.asarray(features, np.float64), balls.points):
        yield rows, squared < balls.radii if strict else squared <= balls.radii


def precision(real: Manifold, generated: np.ndarray, *, strict: bool = False) -> float:
    """The share of generated features inside the real manifold (Kynkaanniemi et al., eq. 3)."""
    inside = sum(int(hits.any(1).sum()) for _, hits in _inside(generated, real, strict))
    return inside / len(generated)


def recall(generated: Manifold, real: np.ndarray, *, strict: bool = False) -> float:
    """The share of real features inside the generated manifold (Kynkaanniemi et al., eq. 3)."""
    return precision(generated, real, strict=strict)


def density(real: Manifold, generated: np.ndarray, *, strict: bool = True) -> float:
    """The mean number of real balls a generated feature lies in, over k (Naeem et al., eq. 4)."""
    hits = sum(int(hits.sum()) for _, hits in _inside(generated, real, strict))
    return hits / (real.k * len(generated))


def coverage(real: Manifold, generated: np.ndarray, *, strict: bool = True) -> float:
    """The share of real balls that hold a generated feature (Naeem et al., eq. 5)."""
    covered = np.zeros(len(real.points), bool)
    for _, hits in _inside(generated, real, strict):
        covered |= hits.any(0)
    return float(covered.mean())
