"""Feature likelihood divergence: how likely fresh data are under a density made of the samples.

Jiralerspong et al. 2023 (FLD). features -> `fit_mixture`, a mixture of Gaussians, one a sample,
whose variances make the training set likely -> `mean_log_likelihood` of the test set. A copy of a
training point gets a variance of about 0 and is of no use to any other point: copies cost what bad
samples do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.special

from jaxgen.errors import invalid
from jaxgen.metrics.neighbours import distance_blocks
from jaxgen.metrics.sets.inputs import tables

# The smallest variance, in units of the features' own: what an exact copy ends with.
_FLOOR = 1e-6


class Mixture(NamedTuple):
    """Centres [m, d] of equal weight, each with an isotropic variance [m]."""

    centres: np.ndarray
    variances: np.ndarray


def fit_mixture(
    centres: np.ndarray, train: np.ndarray, *, iterations: int = 50, tolerance: float = 1e-4
) -> Mixture:
    """The variances [m] that make `train` [n, d] likely, by expectation maximisation.

    Climbs to a maximum of the mean over n of log(mixture(x) + base(x)), from the variances that
    suit each centre's nearest training point best: there are many, and this start finds copies.
    base, a Gaussian at the training mean with the training variance, keeps every log finite (theirs
    has a variance of its own). Stops when a step raises it by less than `tolerance` d nats.
    """
    centres, train = tables(("centres", centres), ("training features", train))
    d = train.shape[1]
    middle = train.mean(0)
    apart = ((train - middle) ** 2).sum(1)
    base = _log_normal(apart, max(float(apart.mean()) / d, _FLOOR), d)
    variances = np.full(len(centres), np.inf)
    for _, squared in distance_blocks(train, centres):
        variances = np.minimum(variances, squared.min(0) / d)
    mixture = Mixture(centres, np.maximum(variances, _FLOOR))
    before = -np.inf
    for _ in range(iterations):
        variances, value = _step(mixture, train, base)
        mixture = Mixture(centres, variances)
        if value - before < tolerance * d:
            break
        before = value
    return mixture


def mean_log_likelihood(mixture: Mixture, features: np.ndarray) -> float:
    """The mean of log mixture(x) over features [n, d], in nats."""
    total = sum(
        float(scipy.special.logsumexp(logs, 1).sum()) for _, logs, _ in _logs(mixture, features)
    )
    return total / len(features)


def likelihood_divergence(
    train: np.ndarray,
    test: np.ndarray,
    generated: np.ndarray,
    *,
    iterations: int = 50,
    seed: int = 0,
) -> float:
    """FLD of features [n, d], [k, d], [m, d]: 0 for fresh draws of the data's law, higher is worse.

    100 / d nats of the test set's mean log-likelihood, under half of the training set as centres
    minus under the generated ones; at most as many centres there as
    generated ones. Features are scaled to the test set's mean and deviation first. Depends on the
    number of samples: compare equal numbers. Samples that copy all of the training set give a huge
    number, set by the smallest variance allowed, 1e-6. It is not a distance: where samples are few
    for the dimension, ones drawn towards the mean make the better density and score below 0.
    """
    train, test, generated = tables(
        ("training features", train),
        ("test features", test),
        ("generated features", generated),
        least=2,
    )
    scale = test.std(0, ddof=1)
    if not scale.all():
        raise invalid(
            "test features", f"{int((scale == 0).sum())} constant columns", "columns that vary"
        )
    train, test, generated = (
        (features - test.mean(0)) / scale for features in (train, test, generated)
    )
    order = np.random.default_rng(seed).permutation(len(train))
    size = min(len(train) // 2, len(generated))
    ideal = fit_mixture(train[order[:size]], train[order[size:]], iterations=iterations)
    made = fit_mixture(generated, train, iterations=iterations)
    gap = mean_log_likelihood(ideal, test) - mean_log_likelihood(made, test)
    return 100 * gap / train.shape[1]


def _log_normal(squared: np.ndarray, variance: np.ndarray | float, d: int) -> np.ndarray:
    return -0.5 * (squared / variance + d * np.log(2 * np.pi * variance))


def _logs(mixture: Mixture, features: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, log N(x; centre, variance) - log m [rows, m], squared distances), in blocks."""
    count, d = mixture.centres.shape
    for rows, squared in distance_blocks(features, mixture.centres):
        yield rows, _log_normal(squared, mixture.variances, d) - np.log(count), squared


def _step(mixture: Mixture, train: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, float]:
    """The next variances [m], and the mean of log(mixture + base) under the present ones."""
    weights = np.zeros(len(mixture.centres))
    moments = np.zeros(len(mixture.centres))
    value = 0.0
    for rows, logs, squared in _logs(mixture, train):
        whole = np.logaddexp(scipy.special.logsumexp(logs, 1), base[rows])
        value += float(whole.sum())
        shares = np.exp(logs - whole[:, None])
        weights += shares.sum(0)
        moments += (shares * squared).sum(0)
    # A centre that no training point belongs to keeps its variance.
    used = weights > np.finfo(np.float64).tiny
    variances = mixture.variances.copy()
    variances[used] = np.maximum(moments[used] / (weights[used] * train.shape[1]), _FLOOR)
    return variances, value / len(train)
