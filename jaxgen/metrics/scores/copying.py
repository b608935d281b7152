"""Data copying: samples too near to the training set, on the whole and one by one.

`copying_statistic` (Meehan, Chaudhuri & Dasgupta 2020, C_T) compares distances over whole cells of
space; `copied_share` (Bhattacharjee, Dasgupta & Chaudhuri 2023) looks around each training point,
so that underfitting in one place cannot make up for copies in another. Both need fresh data: a held
out half that the generator never saw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.stats
from sklearn.cluster import KMeans

from jaxgen.errors import invalid
from jaxgen.metrics.neighbours import distance_blocks, nearest
from jaxgen.metrics.sets.inputs import tables

# Entries of a block of distances: 32 MiB in float64 each.
_ENTRIES = 1 << 22


def rank_statistic(generated: np.ndarray, fresh: np.ndarray) -> float:
    """Mann-Whitney z of distances [m] of samples and [n] of fresh data to the training set.

    Below 0 where samples are nearer (copying), above where they are farther (underfitting); a
    standard normal in the limit where both are of one law. Ties count one half, and
    shrink the deviation: of equal distances only, z is 0.
    """
    m, n = len(generated), len(fresh)
    ranks = scipy.stats.rankdata(np.concatenate([generated, fresh]))
    excess = ranks[:m].sum() - m * (m + 1) / 2 - m * n / 2
    _, ties = np.unique(ranks, return_counts=True)
    total = m + n
    tied = (ties**3.0 - ties).sum() / (total * (total - 1)) if total > 1 else 0.0
    variance = m * n / 12 * (total + 1 - tied)
    return float(excess / np.sqrt(variance)) if variance > 0 else 0.0


def copying_statistic(
    train: np.ndarray,
    fresh: np.ndarray,
    generated: np.ndarray,
    *,
    cells: int = 3,
    least: int = 20,
    seed: int = 0,
) -> float:
    """C_T of features [l, d], [n, d], [m, d]: `rank_statistic` in each cell, and their mean.

    Cells are those of k-means on the training features; each counts by its share of fresh data, and
    only where it holds `least` samples or more (the paper's tau m, 20 as in dgm-eval). Distances in
    a cell are to its own training points. Raises UsageError where a cell lacks fresh data, or all
    lack samples.
    """
    train, fresh, generated = tables(
        ("training features", train),
        ("fresh features", fresh),
        ("generated features", generated),
        least=2,
    )
    if not 1 <= cells <= len(train):
        raise invalid("copying cells", cells, f"1 to {len(train)}, the training images")
    means = KMeans(cells, n_init=10, random_state=seed).fit(train)
    here, there, drawn = means.labels_, means.predict(fresh), means.predict(generated)
    statistics, weights = [], []
    for cell in range(cells):
        if not (there == cell).any():
            raise invalid("copying cells", cells, "fewer, so that every cell holds fresh images")
        if (drawn == cell).sum() >= least:
            inside = train[here == cell]
            near = nearest(generated[drawn == cell], inside)
            statistics.append(rank_statistic(near, nearest(fresh[there == cell], inside)))
            weights.append(float((there == cell).mean()))
    if not statistics:
        raise invalid("generated features", len(generated), f"{least} or more in a cell")
    return float(np.average(statistics, weights=weights))


def copied_share(
    train: np.ndarray,
    fresh: np.ndarray,
    generated: np.ndarray,
    *,
    dimension: float | None = None,
    ratio: float = 20.0,
    mass: float = 1 / 4000,
    neighbours: int = 50,
) -> float:
    """The share of samples in balls around training points that hold far too many of them.

    A sample is copied if it lies in a ball B around a training point with q(B) >= ratio p(B) and
    p(B) <= mass; q is the generator's law, p the data's (their definition; lambda and gamma are
    `ratio` and `mass`). p(B) is estimated from fresh data: the share of them inside, and below the
    distance r of the `neighbours`-th the law r^dimension of a density that is smooth there, so that
    a ball may be smaller than the data can count. dimension: estimated around each training point
    (Levina & Bickel 2004) unless given; one too large calls fresh samples copies, as that of the
    features mostly is. Balls are found on one half of the samples and counted on the other, both
    ways round, so that a copy is found where each half holds one of its training point: take
    several samples a training point. The defaults are ours.
    """
    train, fresh, generated = tables(
        ("training features", train),
        ("fresh features", fresh),
        ("generated features", generated),
    )
    if len(generated) < 4:
        raise invalid("generated features", f"{len(generated)} images", "4 or more")
    if not 3 <= neighbours <= len(fresh):
        raise invalid("copying neighbours", neighbours, f"3 to {len(fresh)}, the fresh images")
    if (dimension is not None and not dimension > 0) or not ratio > 1 or not 0 < mass < 1:
        given = (dimension, ratio, mass)
        raise invalid("copying dimension, ratio, mass", given, "> 0 or None, > 1, between 0 and 1")
    halves = generated[::2], generated[1::2]
    caught = 0
    for seen, counted in (halves, halves[::-1]):
        balls = _balls(
            train,
            fresh,
            seen,
            dimension=dimension,
            ratio=ratio,
            mass=mass,
            neighbours=neighbours,
        )
        for _, squared in distance_blocks(counted, train):
            caught += int((squared <= balls).any(1).sum())
    return caught / len(generated)


def _balls(
    train: np.ndarray,
    fresh: np.ndarray,
    seen: np.ndarray,
    *,
    dimension: float | None,
    ratio: float,
    mass: float,
    neighbours: int,
) -> np.ndarray:
    """Squared radius [l] of the largest ball of copies around each training point; -1: none."""
    radii = np.full(len(train), -1.0)
    shares = np.arange(1, len(seen) + 1) / len(seen)
    least = neighbours / len(fresh)
    for row, (real, made) in enumerate(_sorted_distances(train, fresh, seen)):
        reach = real[neighbours - 1]
        power = (_dimension(real[:neighbours]) if dimension is None else dimension) / 2
        p = np.searchsorted(real, made, side="right") / len(fresh)
        small = made < reach
        p[small] = least * (made[small] / reach) ** power
        dense = np.flatnonzero((p <= mass) & (shares >= ratio * p))
        if len(dense):
            # The ball grows on until the data in it say stop, always short of the next sample.
            most = min(shares[dense[-1]] / ratio, mass)
            radii[row] = max(made[dense[-1]], _radius(real, most, neighbours, power))
    return radii


def _dimension(squared: np.ndarray) -> float:
    """Maximum likelihood dimension from the k smallest squared distances of a point, sorted."""
    apart = squared[squared > 0]
    logs = 0.5 * np.log(apart[-1] / apart).sum() if len(apart) else 0.0
    return max(len(apart) - 2, 1) / logs if logs > 0 else np.inf


def _radius(real: np.ndarray, p: float, neighbours: int, power: float) -> float:
    """The largest squared radius whose ball has an estimated mass of at most p."""
    least = neighbours / len(real)
    if p < least:
        return float(real[neighbours - 1] * (p / least) ** (1 / power))
    return float(np.nextafter(real[int(p * len(real))], 0.0))


def _sorted_distances(
    train: np.ndarray, fresh: np.ndarray, seen: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each training point, its squared distances to all of `fresh` and all of `seen`."""
    block = max(1, _ENTRIES // max(len(fresh), len(seen)))
    for start in range(0, len(train), block):
        rows = train[start : start + block]
        both = (
            np.concatenate([np.sort(squared, 1) for _, squared in distance_blocks(rows, others)])
            for others in (fresh, seen)
        )
        yield from zip(*both, strict=True)
