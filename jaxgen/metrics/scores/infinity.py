"""Scores at infinitely many samples (Chong & Forsyth 2020): the bias of N samples goes as 1/N.

features -> the score of random subsets of growing size -> a line in 1/N -> its value at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.scores.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.scores.inception_score import inception_score, score_sums
from jaxgen.metrics.sets.inputs import distributions, table


class Limit(NamedTuple):
    """value: at infinitely many samples. slope: of the line in 1/N. sizes, scores: what it fits."""

    value: float
    slope: float
    sizes: np.ndarray
    scores: np.ndarray


def extrapolate(sizes: np.ndarray, scores: np.ndarray) -> Limit:
    """The least-squares line of scores [k] in 1 / sizes [k], at 0; needs two different sizes."""
    if len(np.unique(sizes)) < 2:
        raise invalid("sizes", list(sizes), "2 or more different sizes")
    line = np.polynomial.Polynomial.fit(1 / np.asarray(sizes, np.float64), scores, 1).convert()
    return Limit(float(line.coef[0]), float(line.coef[1]), np.asarray(sizes), np.asarray(scores))


def fd_infinity(
    real: Moments,
    generated: np.ndarray,
    *,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> Limit:
    """The Frechet distance of generated features [N, d] to `real`, extrapolated in their number.

    sizes: 15 from max(d + 1, N / 10) to N unless given. The bias of the real side, whose moments
    are taken as they are, stays in it.
    """
    x = table("generated features", generated)
    chosen = _sizes(sizes, len(x), len(real.mean) + 1)
    return _fit(x, chosen, seed, lambda subset: frechet_distance(real, moments(subset)))


def inception_score_infinity(
    probabilities: np.ndarray, *, sizes: Sequence[int] | None = None, seed: int = 0
) -> Limit:
    """The inception score of predictions [N, C], extrapolated in their number.

    sizes: 15 from max(C, N / 10) to N unless given.
    """
    p = distributions("probabilities", probabilities)
    chosen = _sizes(sizes, len(p), p.shape[1])
    return _fit(p, chosen, seed, lambda subset: inception_score(score_sums(subset)))


def _sizes(given: Sequence[int] | None, count: int, least: int) -> np.ndarray:
    start = max(least, count // 10)
    if given is None and start >= count:
        raise invalid("generated features", f"{count} images", f"{least + 1} or more")
    sizes = np.linspace(start, count, 15) if given is None else np.asarray(given)
    if sizes.min() < 1 or sizes.max() > count:
        raise invalid("sizes", list(sizes), f"1 to {count}, the images")
    return np.unique(sizes.astype(np.int64))


def _fit(
    rows: np.ndarray, sizes: np.ndarray, seed: int, score: Callable[[np.ndarray], float]
) -> Limit:
    chance = np.random.default_rng(seed)
    drawn = (rows[chance.choice(len(rows), size, replace=False)] for size in sizes)
    return extrapolate(sizes, np.array([score(subset) for subset in drawn]))
