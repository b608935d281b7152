"""Copies are found around each training point, also where underfitting hides them from a mean."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from jaxgen.metrics.scores.copying import copied_share, copying_statistic

PAPER = "Data-Copying in Generative Models: A Formal Framework"
ENTRY = "jaxgen.metrics.scores.copying.copied_share"
SEEDS, TRAIN, FRESH, SAMPLES = 5, 100, 1000, 2000


def draw(chance: np.random.Generator, count: int) -> np.ndarray:
    """A spiral with noise and uneven density: [count, 2]."""
    turn = 3 * chance.random(count) ** 0.7
    arm = (0.5 + turn)[:, None] * np.stack([np.cos(2 * turn), np.sin(2 * turn)], 1)
    return arm + 0.15 * chance.normal(size=(count, 2))


def sets(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Training and fresh data, and the samples of five generators."""
    chance = np.random.default_rng(seed)
    train, fresh, made = draw(chance, TRAIN), draw(chance, FRESH), draw(chance, SAMPLES)
    copies = train[chance.integers(0, TRAIN, SAMPLES)]
    half = (np.arange(SAMPLES) % 4 < 2)[:, None]
    quarter = (np.arange(SAMPLES) % 8 < 2)[:, None]
    blurred = made + 0.9 * chance.normal(size=made.shape)
    return train, fresh, {
        "fresh": made,
        "half": np.where(half, copies, made),
        "shaken": np.where(half, copies + 1e-3 * chance.normal(size=made.shape), made),
        "hidden": np.where(quarter, copies, blurred),
        "blurred": blurred,
    }  # fmt: skip


def checks() -> list[Check]:
    """The share of copies, exact and shaken; then a generator that evens out its copies."""
    shares: dict[str, list[float]] = {}
    zs: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        train, fresh, made = sets(seed)
        for name, samples in made.items():
            shares.setdefault(name, []).append(copied_share(train, fresh, samples))
            zs.setdefault(name, []).append(copying_statistic(train, fresh, samples, cells=1))
    results = [mean_near("share of copies among fresh draws", shares["fresh"], 0.0, 0.01)]
    for name, text in (("half", "half of them copies"), ("shaken", "copies shaken by 0.001")):
        results.append(mean_near(f"share of copies, {text}", shares[name], 0.5, 0.03))
        results.append(control(mean_near(f"share of copies, {text}", shares["fresh"], 0.5, 0.03)))
        results.append(mean_below(f"C_T, {text}", zs[name], -5.0))
    results.append(control(mean_below("C_T, fresh draws", zs["fresh"], -5.0)))
    # Where the rest is blurred, its distances are too long, and outweigh the copies' in C_T.
    # Each half holds 2.5 copies of a training point, so that e^-2.5 of them are alone in theirs.
    check, caught = "share of copies, a quarter, the rest blurred", 0.25 * (1 - np.exp(-2.5))
    results.append(mean_near(check, shares["hidden"], caught, 0.015))
    results.append(control(mean_near(check, shares["blurred"], caught, 0.015)))
    results.append(
        control(mean_below("C_T, a quarter copies, the rest blurred", zs["hidden"], -5.0))
    )
    results.append(mean_above("C_T, all blurred", zs["blurred"], 5.0))
    return results
