"""Authenticity: the share of samples that are no close copies of a training example.

Alaa et al. 2022, as Stein et al. 2023 (dgm-eval) evaluate it (AuthPct, here a share).
"""

from __future__ import annotations

import numpy as np

from jaxgen.metrics.neighbours import radii, smallest
from jaxgen.metrics.sets.inputs import tables


def authentic(train: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Whether each generated feature [m, d] is authentic: bool [m]; train [n, d] with n >= 2.

    It is not where its nearest training point is as near to it as to any other training point.
    """
    train, generated = tables(("training features", train), ("generated features", generated))
    squared, closest = smallest(generated, train, 1)
    return squared[:, 0] > radii(train, 1)[closest[:, 0]]


def authenticity(train: np.ndarray, generated: np.ndarray) -> float:
    """The share of `authentic` samples: 0 for copies, and 1 - m for other draws of the same law.

    m is the chance that a point's nearest neighbour has it for its own: the volume of a ball over
    that of two through each other's centres, 2/3 on a line, 16/27 in space (Clark & Evans 1955 in
    the plane), where points are dense. In high dimension few points are everybody's neighbours, and
    fresh draws score far higher: .81 for 3000 against 3000 of a Gaussian in 64 dimensions. Compare
    with fresh data. Samples far from all data are authentic too: it says nothing of their quality.
    """
    return float(authentic(train, generated).mean())
