"""FD-UCB and IS-UCB: three generators with known scores; greed stays with a lucky one."""

from __future__ import annotations

import functools

import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_below, mean_near
from jaxgen.metrics.scores.frechet import gaussian_distance, merge, moments
from jaxgen.selection.fid_ucb import (
    Bound,
    Generator,
    Selection,
    frechet_bound,
    play,
    select,
    select_by_inception_score,
)

PAPER = "A Multi-Armed Bandit Approach to Online Selection and Evaluation of Generative Models"
ENTRY = "jaxgen.selection.fid_ucb.select"
ROUNDS, SEEDS = 300, 12
REFERENCE = (np.zeros(3), np.array([1.5, 1.0, 0.5]))
# Means and variances. The first is the best; the second has collapsed to nearly a point, so that
# a few samples show its distance, which is less than what few samples of the first seem to have.
ARMS = (
    (np.array([0.3, 0.2, -0.1]), np.array([1.2, 1.3, 0.6])),
    (np.array([0.2, -0.3, 0.4]), np.array([0.05, 0.02, 0.03])),
    (np.array([-1.4, 1.9, 1.1]), np.array([2.0, 1.0, 0.3])),
)
# How often each class is drawn, and how much of a prediction is spread over all classes. The
# second is surer than the first, and has lost classes.
CLASSIFIED = (
    (np.array([0.3, 0.2, 0.2, 0.15, 0.15]), 0.1),
    (np.array([0.6, 0.3, 0.04, 0.03, 0.03]), 0.01),
    (np.array([0.2, 0.2, 0.2, 0.2, 0.2]), 0.5),
)


def checks() -> list[Check]:
    """Shares of the pulls, what is estimated, and greed in the place of optimism."""
    results = []
    reference = _normal(*REFERENCE)(0, 100_000)
    arms = [_normal(*arm) for arm in ARMS]
    ours = [select(arms, reference, ROUNDS, batch=2, seed=s) for s in range(SEEDS)]
    greedy = [_greedy(arms, reference, s) for s in range(SEEDS)]

    # Measured over 20 seeds: 0.93, standard error 0.005; greedy 0.25 and 0.1.
    check = "FD-UCB: share of 300 rounds with the best arm"
    results.append(mean_above(check, [each.shares[0] for each in ours], 0.8))
    results.append(control(mean_above(check, [each.shares[0] for each in greedy], 0.8)))
    check = "share of seeds that end with a wrong arm"
    results.append(mean_below(check, [float(each.best != 0) for each in ours], 0.05))
    results.append(control(mean_below(check, [float(each.best != 0) for each in greedy], 0.05)))

    true = [gaussian_distance(m, np.diag(v), REFERENCE[0], np.diag(REFERENCE[1])) for m, v in ARMS]
    # Measured over 20 seeds: 1.11, standard error 0.045; two images say 28 and 3.
    check = "Frechet distance of the best arm over its true one"
    results.append(mean_near(check, [each.estimates[0] / true[0] for each in ours], 1.0, 0.3))
    first = (moments(arms[0](s, 2)) for s in range(SEEDS))
    given = (REFERENCE[0], np.diag(REFERENCE[1]))
    early = [gaussian_distance(m.mean, m.covariance, *given) / true[0] for m in first]
    results.append(control(mean_near(check, early, 1.0, 0.3)))
    check = "the best arm's optimistic distance less its true one, at most over seeds"
    results.append(below(check, max(each.optimistic[0] for each in ours) - true[0], 0.0))
    estimated = max(each.estimates[0] for each in greedy) - true[0]
    results.append(control(below(check, estimated, 0.0)))

    # Measured over 8 seeds: 0.89, standard error 0.008.
    scores = [_inception(*arm) for arm in CLASSIFIED]
    arms = [_classified(*arm) for arm in CLASSIFIED]
    chosen = [select_by_inception_score(arms, ROUNDS, batch=32, seed=s) for s in range(8)]
    check = "IS-UCB: share of 300 rounds with the best arm"
    best = int(np.argmax(scores))
    results.append(mean_above(check, [each.shares[best] for each in chosen], 0.8))
    other = [each.shares[(best + 1) % 3] for each in chosen]
    results.append(control(mean_above(check, other, 0.8)))
    check = "ln IS of the best arm less its true one"
    off = [-each.estimates[best] - np.log(scores[best]) for each in chosen]
    results.append(mean_near(check, off, 0.0, 0.01))
    return results


def _normal(mean: np.ndarray, variance: np.ndarray) -> Generator:
    """Features from a normal law with a diagonal covariance."""

    def generate(seed: int, count: int) -> np.ndarray:
        noise = np.random.default_rng(seed).standard_normal((count, len(mean)))
        return mean + np.sqrt(variance) * noise

    return generate


def _greedy(arms: list[Generator], reference: np.ndarray, seed: int) -> Selection:
    """The mechanism removed: the arm with the least estimate."""
    bound = functools.partial(frechet_bound, moments(reference))

    def update(results, features):
        return moments(features) if results is None else merge([results, moments(features)])

    def greed(results) -> Bound:
        estimate = bound(results).estimate
        return Bound(estimate, estimate)

    return play(arms, update, greed, ROUNDS, batch=2, seed=seed)


def _classified(often: np.ndarray, spread: float) -> Generator:
    """Predictions: a class drawn by `often`, with `spread` of the mass over all classes."""

    def generate(seed: int, count: int) -> np.ndarray:
        drawn = np.random.default_rng(seed).choice(len(often), count, p=often)
        return (1 - spread) * np.eye(len(often))[drawn] + spread / len(often)

    return generate


def _inception(often: np.ndarray, spread: float) -> float:
    """The exact inception score of `_classified`."""
    single = (1 - spread) * np.eye(len(often))[0] + spread / len(often)
    mean = (1 - spread) * often + spread / len(often)
    return float(np.exp((single * np.log(single)).sum() - (mean * np.log(mean)).sum()))
