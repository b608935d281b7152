"""MAUVE: 1 for equal histograms, 1 / C(2c, c) for disjoint ones, and both errors in between."""

from __future__ import annotations

import numpy as np
from scipy.special import comb

from experiments.shared.check import Check, below, control, mean_above, mean_below, near
from jaxgen.metrics.scores.mauve import frontier, frontier_integral, histograms
from jaxgen.metrics.scores.mauve import mauve as score

PAPER = "MAUVE Scores for Generative Models: Theory and Practice"
ENTRY = "jaxgen.metrics.scores.mauve.mauve"
SEEDS, COUNT, CELLS = 5, 500, 12


def sampled(chance: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """Features [COUNT, 6] around five directions, drawn with the weights [5]."""
    centres = 4 * np.eye(6)[:5] + 1
    return centres[chance.choice(5, COUNT, p=weights)] + 0.4 * chance.normal(size=(COUNT, 6))


def checks() -> list[Check]:
    """Histograms with known answers; then features of models that lose or invent modes."""
    p = np.array([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    q = np.array([0.0, 0.0, 0.0, 0.0, 0.7, 0.3])
    results = [near("MAUVE of equal histograms", score(p, p), 1.0, 1e-12)]
    for scale in (2, 5):
        check, exact = f"MAUVE of disjoint histograms, c = {scale}", 1 / comb(2 * scale, scale)
        results.append(near(check, score(p, q, scale=scale), exact, 1e-9))
        # One sample in a hundred of the other side, and they are disjoint no longer.
        mixed = score(p, 0.99 * q + 0.01 * p, scale=scale)
        results.append(control(near(check, mixed, exact, 1e-9)))
    results.append(
        near("frontier integral of disjoint histograms", frontier_integral(p, q), 1, 1e-12)
    )
    path = [(1 - w) * q + w * p for w in np.linspace(0, 1, 21)]
    scores = np.array([score(p, step) for step in path])
    results.append(below("largest fall of MAUVE on the way from disjoint to equal",
                       -np.diff(scores).min(), 0.0))  # fmt: skip
    odd = max(abs(score(p, step) - score(step, p)) for step in path)
    results.append(below("|MAUVE(p, q) - MAUVE(q, p)| on that way", odd, 1e-9))
    # A model of the largest mode alone invents nothing (its x at r = p is .4^c) and misses what
    # it cannot make up for (y at r = q is 0); a model of more modes than there are, the reverse.
    alone = np.array([1.0, 0, 0, 0, 0, 0])
    ends = np.array([1.0, 0.0])
    results.append(
        near("x at r = p of a model of one mode", frontier(p, alone, ends)[0, 0], 0.4**5, 1e-12)
    )
    results.append(below("y at r = q of a model of one mode", frontier(p, alone, ends)[1, 1], 0.0))
    results.append(
        control(below("y at r = q of a model that invents", frontier(alone, p, ends)[1, 1], 0.0))
    )

    real = np.array([0.4, 0.25, 0.2, 0.15, 0.0])
    models = {
        "itself": real,
        "three modes": [0.55, 0.25, 0.2, 0, 0],
        "another": [0, 0, 0, 0.1, 0.9],
    }
    values: dict[str, list[float]] = {name: [] for name in models}
    for seed in range(SEEDS):
        chance = np.random.default_rng(seed)
        data = sampled(chance, real)
        for name, weights in models.items():
            made = sampled(chance, np.array(weights))
            values[name].append(score(*histograms(data, made, cells=CELLS, seed=seed)))
    # Seen: .995, .79 and .009 with standard errors of .02 at most.
    results.append(mean_above("MAUVE of a model that is right", values["itself"], 0.95))
    results.append(control(mean_above("MAUVE, a mode missing", values["three modes"], 0.95)))
    results.append(mean_above("MAUVE, a mode missing, beside a law with little in common",
                            np.array(values["three modes"]) - values["another"], 0.4))  # fmt: skip
    results.append(mean_below("MAUVE of a law with little in common", values["another"], 0.1))
    return results
