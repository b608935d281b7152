"""Realism of single samples, against the manifold of real features (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import numpy as np

from jaxgen.metrics.neighbours import distance_blocks
from jaxgen.metrics.scores.manifold import Manifold
from jaxgen.metrics.sets.inputs import tables


def pruned(real: Manifold) -> Manifold:
    """The manifold without the balls larger than the median one, as sec. 5 asks for.

    Real images that stand alone have large balls, which would call anything near them real.
    """
    kept = real.radii <= np.median(real.radii)
    return Manifold(real.points[kept], real.radii[kept], real.k)


def realism(real: Manifold, features: np.ndarray) -> np.ndarray:
    """The largest radius / distance over real balls (sec. 5) of each feature [m, d]: [m].

    At least 1 exactly where the feature lies in the manifold, rim included; infinite on a real
    point.
    """
    _, features = tables(("real features", real.points), ("features", features))
    realisms = np.empty(len(features))
    for rows, squared in distance_blocks(features, real.points):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(squared > 0, real.radii / squared, np.inf)
        realisms[rows] = np.sqrt(ratios.max(1))
    return realisms
