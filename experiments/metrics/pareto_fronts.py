"""Guidance trades diversity for consistency, and the front holds what nothing else beats."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, above, below, control, mean_above, near
from jaxgen.metrics.scores.frechet import gaussian_distance, moments
from jaxgen.metrics.scores.pareto import front
from jaxgen.metrics.scores.vendi import spectrum, vendi_score

PAPER = "Consistency-diversity-realism Pareto fronts of conditional image generative models"
ENTRY = "jaxgen.metrics.scores.pareto.front"
# Three overlapping classes: N(mean, variance I), with these weights.
MEANS = np.array([[0.0, 0.0], [1.6, 0.4], [-0.5, 1.4]])
VARIANCES, WEIGHTS = np.array([0.6, 1.0, 0.3]), np.array([0.5, 0.2, 0.3])
GUIDANCE = (0.0, 0.5, 1.0, 2.0, 4.0)
SEEDS, COUNT, STEPS = 5, 300, 24
BETTER = ("higher", "higher", "lower")


def scores_of(x: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact score [3, n, 2] of each class at a noise level, and p(class | x) [3, n]."""
    total = (VARIANCES + noise**2)[:, None]
    apart = MEANS[:, None] - x
    logs = np.log(WEIGHTS)[:, None] - (apart**2).sum(2) / (2 * total) - np.log(total)
    p = np.exp(logs - logs.max(0))
    return apart / total[..., None], p / p.sum(0)


def sample(label: int, guidance: float, seed: int) -> np.ndarray:
    """Samples [COUNT, 2] of a class by the probability flow, Heun's steps, guided by w."""
    x = 20.0 * np.random.default_rng((seed, label)).normal(size=(COUNT, 2))
    levels = np.append(20.0 * (1e-4 ** np.linspace(0, 1, STEPS)), 0.0)

    def slope(x: np.ndarray, noise: float) -> np.ndarray:
        score, p = scores_of(x, noise)
        whole = (p[..., None] * score).sum(0)
        return -noise * (score[label] + guidance * (score[label] - whole))

    for now, then in zip(levels[:-1], levels[1:], strict=True):
        first = slope(x, now)
        x = x + (then - now) * (first + slope(x + (then - now) * first, then)) / 2
    return x


def three(guidance: float, seed: int) -> list[float]:
    """Consistency (mean p(class | x)), diversity (Vendi in a class), realism (Frechet distance)."""
    made = [sample(label, guidance, seed) for label in range(3)]
    sure = np.average([scores_of(x, 0.0)[1][k].mean() for k, x in enumerate(made)], weights=WEIGHTS)
    varied = [vendi_score(spectrum(x, kernel="rbf", sigma=0.3)) for x in made]
    distances = []
    for x, mean, variance in zip(made, MEANS, VARIANCES, strict=True):
        measured = moments(x)
        exact = mean, variance * np.eye(2)
        distances.append(gaussian_distance(*exact, measured.mean, measured.covariance))
    return [float(sure), float(np.average(varied, weights=WEIGHTS)), float(np.mean(distances))]


def checks() -> list[Check]:
    """A sweep with the exact score, then fronts against every pair of settings."""
    sweep = np.array([[three(w, seed) for w in GUIDANCE] for seed in range(SEEDS)])
    consistency, diversity, distance = np.moveaxis(sweep, 2, 0)
    results = [
        mean_above(
            "smallest rise of consistency with guidance", np.diff(consistency).min(1), 0.018
        ),
        mean_above("smallest fall of diversity with guidance", -np.diff(diversity).max(1), 2.0),
        mean_above("distance at w = 4 minus at 0", distance[:, -1] - distance[:, 0], 1.0),
    ]
    # Without guidance, other seeds for its weights: nothing rises.
    other = np.array([three(0.0, seed + SEEDS)[0] for seed in range(SEEDS)])
    check = "smallest rise of consistency with guidance, none given"
    results.append(control(mean_above(check, other - consistency[:, 0], 0.018)))

    # So no setting beats another; one that is worse in everything is beaten by what it came from.
    settings = sweep[0]
    worse = settings * [0.9, 0.9, 1.2]
    kept = front(np.concatenate([settings, worse]), BETTER)
    results.append(near("settings of the sweep on the front", kept[: len(settings)].sum(), 5, 0))
    results.append(below("settings that are worse in everything, on it", kept[5:].sum(), 0))
    turned = front(np.concatenate([settings, worse]), ("lower", "lower", "higher"))
    results.append(control(below("the same with every direction turned", turned[5:].sum(), 0)))

    chance = np.random.default_rng(0)
    clouds = [np.round(chance.normal(size=(150, 3)), 1) for _ in range(5)]
    wrong = sum(int((front(cloud, BETTER) != _brute(cloud, BETTER)).sum()) for cloud in clouds)
    results.append(below("settings where the front differs from comparing all pairs", wrong, 0))
    one_way = ("higher", "higher", "higher")
    wrong = sum(int((front(cloud, BETTER) != _brute(cloud, one_way)).sum()) for cloud in clouds)
    results.append(control(below("the same, with one direction wrong", wrong, 0)))
    results.append(above("settings on a front", front(clouds[0], BETTER).sum(), 5))
    return results


def _brute(scores: np.ndarray, better: tuple[str, ...]) -> np.ndarray:
    upward = scores * [1 if name == "higher" else -1 for name in better]
    least = (upward[:, None] >= upward).all(2) & (upward[:, None] > upward).any(2)
    return ~least.any(0)
