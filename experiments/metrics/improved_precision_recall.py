"""Precision and recall part fidelity from diversity, and realism says it of one sample."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_near, near
from jaxgen.metrics.scores.manifold import manifold, precision, recall
from jaxgen.metrics.scores.realism import pruned, realism

PAPER = "Improved Precision and Recall Metric for Assessing Generative Models"
ENTRY = "jaxgen.metrics.scores.realism.realism"
SEEDS, DIMENSION = 6, 2
# Two far modes, of unequal weight and shape.
SHARE, FAR = 0.3, 40.0


def draw(chance: np.random.Generator, count: int, share: float = SHARE) -> np.ndarray:
    """Data [count, 2]; `share` of them from the narrow mode."""
    narrow = (np.arange(count) < share * count)[:, None]
    spread = np.where(narrow, 0.5, np.linspace(0.5, 2, DIMENSION))
    return spread * chance.normal(size=(count, DIMENSION)) + np.where(narrow, FAR, 0.0)


def pair(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Precision and recall at k = 3."""
    return precision(manifold(real, k=3), made), recall(manifold(made, k=3), real)


def checks() -> list[Check]:
    """Generators that drop a mode, truncate, or draw noise; then realism against the manifold."""
    same, dropped, noise, wide, cut = [], [], [], [], []
    for seed in range(SEEDS):
        chance = np.random.default_rng(seed)
        real, made = draw(chance, 500), draw(chance, 500)
        same.append(pair(real, made))
        dropped.append(pair(real, draw(chance, 500, share=0.0)))
        noise.append(pair(real, chance.uniform(-200, 200, size=(500, DIMENSION))))
        mode = np.where(made > FAR / 2, FAR, 0.0)
        wide.append(pair(real, mode + 2.0 * (made - mode)))
        cut.append(pair(real, mode + 0.5 * (made - mode)))
    p, r = np.array(same).T
    results = [
        mean_above("precision of fresh draws", p, 0.9),
        mean_above("recall of fresh draws", r, 0.9),
    ]
    # The mode of 30 % is missing: nothing made is wrong, and 30 % of the data are not covered.
    p_one, r_one = np.array(dropped).T
    results.append(mean_above("precision without the narrow mode", p_one, 0.9))
    check = "recall lost without the narrow mode"
    results.append(mean_near(check, r - r_one, SHARE, 0.03))
    results.append(control(mean_near(check, p - p_one, SHARE, 0.03)))
    p_noise, _ = np.array(noise).T
    results.append(below("precision of noise far and wide", p_noise.max(), 0.0))
    results.append(control(below("precision of fresh draws, as of noise", p.max(), 0.0)))
    # Samples twice as far from their mode as the data, and truncated to a quarter of that.
    (p_wide, r_wide), (p_cut, r_cut) = np.array(wide).T, np.array(cut).T
    results.append(mean_above("precision gained by truncation", p_cut - p_wide, 0.15))
    results.append(mean_above("recall lost by truncation", r_wide - r_cut, 0.1))

    chance = np.random.default_rng(SEEDS)
    balls = pruned(manifold(draw(chance, 300), k=3))
    points = 1.3 * draw(chance, 300)
    inside = np.array([precision(balls, point[None]) for point in points])
    check = "samples whose realism says other than the manifold"
    results.append(below(check, ((realism(balls, points) >= 1) != inside).sum(), 0))
    results.append(control(below(check, ((realism(balls, points) >= 0.5) != inside).sum(), 0)))
    results.append(
        near("share of samples inside (0 or 1 would show nothing)", inside.mean(), 0.5, 0.45)
    )
    # Along a way out of the data, realism falls as 1 / distance far away.
    ray = np.zeros((2, DIMENSION))
    ray[:, 0] = -1e4, -2e4
    out = realism(balls, ray)
    results.append(near("realism at twice the distance, far away", out[1] / out[0], 0.5, 1e-2))
    return results
