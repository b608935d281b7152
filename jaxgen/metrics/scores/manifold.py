"""Precision, recall, density and coverage by nearest neighbours in feature space.

features -> `Manifold` (features and radii) -> `precision`, `recall`, `density`, `coverage`.
A manifold is the union of balls around its points, each reaching to the k-th nearest other point.
strict: a point on the very rim of a ball is outside. Kynkaanniemi et al. 2019 (k = 3), ADM and
StyleGAN count it in; Naeem et al. 2020 (k = 5) do not. On exact duplicates radii are 0 and a strict
count is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.neighbours import Threshold, own_radii, radii, within

# How the papers that brought them count: precision and recall with k = 3 and the rim inside
# (Kynkaanniemi et al. 2019), density and coverage with k = 5 and without it (Naeem et al. 2020).
KINDS = {
    "precision": (3, False),
    "recall": (3, False),
    "density": (5, True),
    "coverage": (5, True),
}
# The same balls, asked from the other side (`asymmetry`).
COMPLEMENTS = {"complement_precision": (3, False), "complement_recall": (3, False)}


class Manifold(NamedTuple):
    """Points float [n, d], the squared radius [n] of the ball around each, and the k it is of."""

    points: np.ndarray
    radii: np.ndarray
    k: int


def manifold(features: np.ndarray, *, k: int) -> Manifold:
    """The k-nearest-neighbour manifold of features [n, d]; UsageError unless 1 <= k < n."""
    return Manifold(features, radii(features, k), k)


def manifolds(features: np.ndarray, ks: Sequence[int]) -> dict[int, Manifold]:
    """`manifold` for several k, from one pass over the distances."""
    return {k: Manifold(features, distances, k) for k, distances in own_radii(features, ks).items()}


def _count(features: np.ndarray, balls: Manifold, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """The number of balls around each feature, and of features in each ball."""
    return within(features, balls.points, [Threshold(balls.radii, "columns", strict)])[0]


def precision(real: Manifold, generated: np.ndarray, *, strict: bool = False) -> float:
    """The share of generated features inside the real manifold (Kynkaanniemi et al., eq. 3)."""
    return float((_count(generated, real, strict)[0] > 0).mean())


def recall(generated: Manifold, real: np.ndarray, *, strict: bool = False) -> float:
    """The share of real features inside the generated manifold (Kynkaanniemi et al., eq. 3)."""
    return precision(generated, real, strict=strict)


def density(real: Manifold, generated: np.ndarray, *, strict: bool = True) -> float:
    """The mean number of real balls a generated feature lies in, over k (Naeem et al., eq. 4)."""
    return float(_count(generated, real, strict)[0].sum() / (real.k * len(generated)))


def coverage(real: Manifold, generated: np.ndarray, *, strict: bool = True) -> float:
    """The share of real balls that hold a generated feature (Naeem et al., eq. 5)."""
    return float((_count(generated, real, strict)[1] > 0).mean())


def scores(
    real: Mapping[int, Manifold],
    generated: Mapping[int, Manifold],
    kinds: Mapping[str, tuple[int, bool]] = KINDS,
) -> dict[str, float]:
    """The four scores and their complements from one pass over the distances of the two sets.

    real, generated: k -> `manifold`. kinds: score -> (k, strict).
    """
    asked: dict[tuple[str, int, bool], Threshold] = {}
    for kind, (k, strict) in kinds.items():
        of = _BALLS[kind]
        side = generated if of == "rows" else real
        asked[of, k, strict] = Threshold(side[k].radii, of, strict)
    k, _ = next(iter(kinds.values()))
    counts = within(generated[k].points, real[k].points, list(asked.values()))
    by_balls = dict(zip(asked, counts, strict=True))
    results = {}
    for kind, (k, strict) in kinds.items():
        rows, columns = by_balls[_BALLS[kind], k, strict]
        if kind == "density":
            results[kind] = float(rows.sum() / (k * len(rows)))
        else:
            of_rows = kind in ("precision", "complement_precision")
            results[kind] = float(((rows if of_rows else columns) > 0).mean())
    return results


# Rows are generated features, columns real ones: whose balls each score asks about.
_BALLS = {
    "precision": "columns",
    "density": "columns",
    "coverage": "columns",
    "complement_recall": "columns",
    "recall": "rows",
    "complement_precision": "rows",
}
