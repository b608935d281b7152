"""Inception score (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), of any classifier.

probabilities -> `score_sums` (mergeable) -> `entropies` -> `inception_score`. With a classifier
other than Inception it is called by that classifier's name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxgen.errors import invalid


class ScoreSums(NamedTuple):
    """size: N. marginal [C]: sum of p. negative_entropy: sum of p ln p. All float64."""

    size: int
    marginal: np.ndarray
    negative_entropy: float


def score_sums(probabilities: np.ndarray) -> ScoreSums:
    """Sums over predictions [N, C], each a distribution."""
    p = np.asarray(probabilities, np.float64)
    logs = np.log(np.where(p > 0, p, 1.0))
    return ScoreSums(len(p), p.sum(0), float((p * logs).sum()))


def merge_scores(pieces: Iterable[ScoreSums]) -> ScoreSums:
    """Sums over the union of shards."""
    return functools.reduce(lambda a, b: ScoreSums(a[0] + b[0], a[1] + b[1], a[2] + b[2]), pieces)


class Entropies(NamedTuple):
    """In nats. marginal: H(y), the variety of labels. conditional: E H(y|x), doubt about each."""

    marginal: float
    conditional: float


def entropies(sums: ScoreSums) -> Entropies:
    """Both entropies of the predictions that were summed."""
    if sums.size < 1:
        raise invalid("probabilities", f"{sums.size} images", "1 or more for an inception score")
    mean = sums.marginal / sums.size
    some = mean[mean > 0]
    return Entropies(float(-(some * np.log(some)).sum()), -sums.negative_entropy / sums.size)


def label_information(sums: ScoreSums) -> float:
    """I(y; x) = H(y) - E H(y|x), 0 to ln C nats (Barratt & Sharma 2018); its parts say why.

    The marginal must be that of all images: in splits of n it is only that of n, which bounds the
    score by n.
    """
    entropy = entropies(sums)
    return entropy.marginal - entropy.conditional


def inception_score(sums: ScoreSums) -> float:
    """exp of the `label_information`: 1 for equal predictions, C for balanced certain ones."""
    return float(np.exp(label_information(sums)))


def inception_score_splits(
    probabilities: np.ndarray, *, splits: int, seed: int | None
) -> tuple[float, float]:
    """Mean and standard deviation (divisor `splits`) of the score of equal consecutive splits.

    seed: shuffle first, so that the order of the images does not matter; None keeps the order,
    which on images sorted by class gives another, much lower number. An unequal rest is left out.
    """
    size = len(probabilities) // splits if splits >= 1 else 0
    if size < 1:
        raise invalid("inception score splits", splits, f"1 to {len(probabilities)}, the images")
    if seed is not None:
        probabilities = probabilities[np.random.default_rng(seed).permutation(len(probabilities))]
    splitted = probabilities[: size * splits].reshape(splits, size, -1)
    scores = np.array([inception_score(score_sums(split)) for split in splitted])
    return float(scores.mean()), float(scores.std())
