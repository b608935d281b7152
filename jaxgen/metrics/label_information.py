"""What an inception score is made of: the information between image and label, in nats.

predictions -> `score_sums` -> `entropies` -> `label_information`, the log of the inception score
(Barratt & Sharma 2018). The marginal must be that of all images: in splits of n images it is only
that of n, which bounds the score by n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.inception_score import ScoreSums


class Entropies(NamedTuple):
    """In nats. marginal: H(y), the variety of labels. conditional: E H(y|x), doubt about each."""

    marginal: float
    conditional: float


def entropies(sums: ScoreSums) -> Entropies:
    """Both entropies of the predictions that were summed."""
    if sums.size < 1:
        raise invalid("probabilities", f"{sums.size} images", "1 or more for an entropy")
    mean = sums.marginal / sums.size
    some = mean[mean > 0]
    return Entropies(float(-(some * np.log(some)).sum()), -sums.negative_entropy / sums.size)


def label_information(sums: ScoreSums) -> float:
    """I(y; x) = H(y) - E H(y|x), 0 to ln C nats; the two parts say why it is low."""
    found = entropies(sums)
    return found.marginal - found.conditional
