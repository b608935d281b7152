"""Frechet distance class by class: what the distance of the whole set hides in a mixture.

(features, labels) -> `Moments` of each class -> `classwise_frechet`. The "intra FID" of Miyato
& Koyama 2018 where the features are those of Inception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.scores.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.sets.inputs import table


class Classwise(NamedTuple):
    """mean: over classes, each counted once. values: the distance of each class, by label."""

    mean: float
    values: dict[int, float]


def class_moments(features: np.ndarray, labels: np.ndarray) -> dict[int, Moments]:
    """Moments of the features [N, d] of each label [N] that occurs."""
    x, y = table("features", features), np.asarray(labels)
    if y.shape != x.shape[:1]:
        raise invalid("labels", y.shape, f"one a feature: ({len(x)},)")
    return {int(label): moments(x[y == label]) for label in np.unique(y)}


def classwise_frechet(real: Mapping[int, Moments], generated: Mapping[int, Moments]) -> Classwise:
    """The Frechet distance of each class, and their mean; both sides need the same classes.

    Each class needs d + 1 images on each side.
    """
    if set(real) != set(generated):
        odd = sorted(set(real) ^ set(generated))
        raise invalid("labels", f"classes {odd} on one side only", "the same classes on both sides")
    for option, side in (("real", real), ("generated", generated)):
        for label, of_class in side.items():
            need = len(of_class.mean) + 1
            if of_class.size < need:
                name = f"{option} features of class {label}"
                raise invalid(name, f"{of_class.size} images", f"{need} or more")
    values = {label: frechet_distance(real[label], generated[label]) for label in sorted(real)}
    return Classwise(float(np.mean(list(values.values()))), values)
