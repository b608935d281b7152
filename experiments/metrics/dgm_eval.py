"""The suite on laws with known answers, and generators ranked by several of its scores."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from experiments.shared.check import Check, below, control, mean_above, mean_near, near
from jaxgen.metrics.scores.authenticity import authenticity
from jaxgen.metrics.scores.frechet import frechet_distance, gaussian_distance, moments
from jaxgen.metrics.scores.infinity import fd_infinity
from jaxgen.metrics.scores.kernel import polynomial_mmd
from jaxgen.metrics.scores.likelihood_divergence import likelihood_divergence
from jaxgen.metrics.scores.manifold import coverage, density, manifold, precision, recall
from jaxgen.metrics.scores.sliced import directions, projections, sliced_wasserstein
from jaxgen.metrics.scores.vendi import spectrum, vendi_score

PAPER = (
    "Exposing flaws of generative model evaluation metrics and their unfair treatment of "
    "diffusion models"
)
ENTRY = "jaxgen.metrics.scores.authenticity.authenticity"
SEEDS, COUNT, DIMENSION = 5, 300, 5
SPREAD = np.array([2.0, 1.5, 1.0, 0.7, 0.4])
# How far each generator is off, in deviations of the data: the truth that scores should rank by.
OFF = np.array([0.0, 0.6, 1.2, 2.0, 3.0])


def draw(chance: np.random.Generator, off: float = 0.0) -> np.ndarray:
    """Samples [COUNT, 5] whose mean is `off` deviations away along all axes."""
    return SPREAD * (chance.normal(size=(COUNT, DIMENSION)) + off / np.sqrt(DIMENSION)) + 3


def ranked(train: np.ndarray, test: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Scores that are lower for better samples."""
    along = directions(DIMENSION, 64)
    balls = manifold(test, k=5)
    return {
        "frechet": frechet_distance(moments(test), moments(made)),
        "frechet at infinity": fd_infinity(moments(test), made).value,
        "kernel": polynomial_mmd(test, made),
        "sliced": sliced_wasserstein(projections(test, along), projections(made, along)),
        "likelihood divergence": likelihood_divergence(train, test, made, iterations=15),
        "1 - precision": 1 - precision(balls, made),
        "1 - density": 1 - density(balls, made),
        "1 - coverage": 1 - coverage(balls, made),
    }


def checks() -> list[Check]:
    """Closed forms, disjoint supports, orthogonal items, copies; then the ranking."""
    d, shift, scale = 6, np.array([1.0, -0.5, 0, 0, 2, 0]), 1.7
    exact = gaussian_distance(np.zeros(d), np.eye(d), shift, scale**2 * np.eye(d))
    error = abs(exact - (shift @ shift + d * (1 - scale) ** 2))
    results = [below("|FD of Gaussians - (|m|^2 + d (1 - s)^2)|", error, 1e-12)]

    chance = np.random.default_rng(0)
    real, far = draw(chance), draw(chance, off=60.0)
    both = precision(manifold(real, k=5), far) + recall(manifold(far, k=5), real)
    results.append(below("precision and recall of disjoint supports", both, 0))
    near_by = draw(chance)
    both = precision(manifold(real, k=5), near_by) + recall(manifold(near_by, k=5), real)
    results.append(control(below("precision and recall of one law", both, 0)))
    results.append(
        near("Vendi score of 40 orthogonal items", vendi_score(spectrum(np.eye(40))), 40, 1e-9)
    )
    alike = np.eye(40) + 1
    results.append(control(near("Vendi score of 40 items that overlap",
                              vendi_score(spectrum(alike)), 40, 1e-9)))  # fmt: skip

    copied, fresh, ranks = [], [], []
    for seed in range(SEEDS):
        chance = np.random.default_rng(seed)
        train, test = draw(chance), draw(chance)
        copied.append(authenticity(train, train))
        fresh.append(authenticity(train[:, :2], draw(chance)[:, :2]))
        rows = [ranked(train, test, draw(chance, off)) for off in OFF]
        ranks.append([spearmanr(OFF, [row[name] for row in rows])[0] for name in rows[0]])
        names = list(rows[0])
    results.append(mean_near("authentic share of a copied training set", copied, 0.0, 0.0))
    # Nearest neighbours on a plane are mutual with probability 6 pi / (8 pi + 3 sqrt 3) = .6215.
    check, mutual = "authentic share of fresh draws on a plane", 0.6215
    results.append(mean_near(check, fresh, 1 - mutual, 0.06))
    results.append(control(mean_near(check, copied, 1 - mutual, 0.06)))
    # Seen: 1 in every run for most; precision's neighbours confuse the best two now and then.
    for name, column in zip(names, np.array(ranks).T, strict=True):
        results.append(mean_above(f"rank correlation of {name} with the truth", column, 0.8))
    # Vendi needs no reference, and so knows nothing of how far samples are off.
    blind = []
    for seed in range(SEEDS):
        chance = np.random.default_rng(seed)
        values = [vendi_score(spectrum(draw(chance, off), kernel="rbf", sigma=1.0)) for off in OFF]
        blind.append(-spearmanr(OFF, values)[0])
    results.append(control(mean_above("rank correlation of Vendi with the truth", blind, 0.8)))
    return results
