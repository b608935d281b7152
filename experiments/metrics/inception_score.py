"""An inception score is the information between image and label; splits of n cap it at n."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_below, mean_near, near
from jaxgen.metrics.scores.inception_score import (
    entropies,
    inception_score,
    inception_score_splits,
    label_information,
    score_sums,
)

PAPER = "A Note on the Inception Score"
ENTRY = "jaxgen.metrics.scores.inception_score.label_information"
SEEDS = 5
# Unequal classes on a line, as an exact classifier sees them: N(mean, 1), weights below.
MEANS, WEIGHTS = np.array([-3.0, 0.0, 1.5, 5.0]), np.array([0.1, 0.4, 0.2, 0.3])


def classify(x: np.ndarray) -> np.ndarray:
    """p(y | x) [n, 4] of points [n]."""
    logs = np.log(WEIGHTS) - 0.5 * (x[:, None] - MEANS) ** 2
    p = np.exp(logs - logs.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def draw(seed: int, count: int) -> np.ndarray:
    """Points [count] of the mixture."""
    chance = np.random.default_rng(seed)
    return MEANS[chance.choice(4, count, p=WEIGHTS)] + chance.normal(size=count)


def exact() -> float:
    """I(y; x) of the mixture in nats, by integration on a grid."""
    x = np.linspace(-12, 14, 20_001)
    density = (WEIGHTS * np.exp(-0.5 * (x[:, None] - MEANS) ** 2)).sum(1) / np.sqrt(2 * np.pi)
    p = classify(x)
    doubt = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    return float(-(WEIGHTS * np.log(WEIGHTS)).sum() - (density * doubt).sum() * (x[1] - x[0]))


def checks() -> list[Check]:
    """The identity, the information of a mixture that is known, the cap of splits, and gaming."""
    sums = score_sums(classify(draw(0, 500)))
    entropy = entropies(sums)
    error = abs(np.log(inception_score(sums)) - (entropy.marginal - entropy.conditional))
    results = [below("|log IS - (H(y) - E H(y|x))|", error, 1e-12)]
    # Seen: standard error .002 nats.
    check, truth = "label information of 10000 points in nats", exact()
    whole = [label_information(score_sums(classify(draw(seed, 10_000)))) for seed in range(SEEDS)]
    results.append(mean_near(check, whole, truth, 0.02))
    split = [
        np.log(inception_score_splits(classify(draw(seed, 10_000)), splits=2000, seed=seed)[0])
        for seed in range(SEEDS)
    ]
    results.append(control(mean_near(f"{check}, in splits of 5", split, truth, 0.02)))

    # A perfect generator of 50 certain classes: 50 of the whole, at most n in splits of n.
    classes, size = 50, 10
    certain = np.eye(classes)[np.repeat(np.arange(classes), 20)]
    results.append(near("IS of 50 certain classes", inception_score(score_sums(certain)), 50, 1e-9))
    capped = [
        inception_score_splits(certain, splits=len(certain) // size, seed=seed)[0]
        for seed in range(SEEDS)
    ]
    results.append(mean_below(f"its mean over splits of {size}", capped, size))
    whole = [inception_score_splits(certain, splits=1, seed=seed)[0] for seed in range(SEEDS)]
    results.append(control(mean_below("its mean over one split", whole, size)))

    # Four images, one a class, score above the data themselves.
    gamed = inception_score(score_sums(classify(np.array([-9.0, -0.9, 2.2, 11.0]))))
    data = [inception_score(score_sums(classify(draw(seed, 10_000)))) for seed in range(SEEDS)]
    results.append(
        mean_above("IS of four images minus that of the data", gamed - np.array(data), 0.05)
    )
    return results
