"""Kernel distances between sets of features: KID (unbiased, polynomial) and MMD with an RBF.

features -> `kid_estimates` (one a subset) -> `kid`; features -> `rbf_sums` (mergeable over the
rows) -> `rbf_mmd`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import threadpoolctl

from jaxgen.errors import invalid


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of features [n, d] and [m, d], kernel (x.y / d + 1)^3.

    Binkowski et al. 2018, eq. 4: pairs within a set without the diagonal, all pairs across.
    Products of float32 features are float32, as everywhere else; their sums are float64.
    """
    if min(len(x), len(y)) < 2:
        raise invalid("features", (len(x), len(y)), "2 or more images on each side for a KID")

    x, y = (a if a.dtype == np.float32 else np.asarray(a, np.float64) for a in (x, y))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        base = a @ b.T  # of a and itself: half the work
        base /= a.shape[1]
        base += 1
        cube = base * base  # far faster than a power
        cube *= base
        return cube

    def within(a: np.ndarray) -> float:
        matrix = kernel(a, a)
        total = matrix.sum(dtype=np.float64) - np.trace(matrix, dtype=np.float64)
        return total / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean(dtype=np.float64))


def kid_estimates(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """`polynomial_mmd` of `subsets` pairs of random subsets, drawn without replacement: [subsets].

    Raises UsageError where a side has fewer than `subset_size` images.
    """
    least = min(len(real), len(generated))
    if not 2 <= subset_size <= least:
        raise invalid("kid subset_size", subset_size, f"2 to {least}, the smaller set of images")
    chance = np.random.default_rng(seed)

    def draw(images: int) -> np.ndarray:
        return chance.choice(images, subset_size, replace=False)

    pairs = [(draw(len(real)), draw(len(generated))) for _ in range(subsets)]
    # A subset a thread: its gathering and its powers take a third of the time, and one thread each.
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        return np.array(
            list(pool.map(lambda rows: polynomial_mmd(real[rows[0]], generated[rows[1]]), pairs))
        )


def kid(estimates: np.ndarray) -> tuple[float, float]:
    """KID and its standard error: the mean of the estimates, and their deviation / sqrt(subsets).

    The error is that of drawing subsets from the sets given (divisor n - 1; 0 for one subset).
    """
    count = len(estimates)
    error = float(estimates.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return float(estimates.mean()), error


class KernelSums(NamedTuple):
    """Sum of a kernel over all pairs of rows, and the number of pairs."""

    total: float
    pairs: int


def rbf_sums(x: np.ndarray, y: np.ndarray, *, sigma: float, block: int = 2048) -> KernelSums:
    """The sum of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of [n, d] and [m, d], in blocks."""
    total, same = 0.0, x is y
    for start in range(0, len(x), block):
        a = np.asarray(x[start : start + block], np.float64)
        for other in range(start if same else 0, len(y), block):
            b = np.asarray(y[other : other + block], np.float64)
            squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
            block_sum = float(np.exp(-np.maximum(squared, 0) / (2 * sigma**2)).sum())
            total += 2 * block_sum if same and other > start else block_sum
    return KernelSums(total, len(x) * len(y))


def merge_sums(pieces: Iterable[KernelSums]) -> KernelSums:
    """The sums over the union of disjoint sets of pairs."""
    return functools.reduce(lambda a, b: KernelSums(a[0] + b[0], a[1] + b[1]), pieces)


def rbf_mmd(xx: KernelSums, yy: KernelSums, xy: KernelSums, *, scale: float = 1000.0) -> float:
    """Squared MMD times `scale`, biased: the V-statistic, diagonals included.

    CMMD (Jayasumana et al. 2024) is this with sigma 10, scale 1000 and CLIP embeddings. Raises
    UsageError where there is nothing on one of the sides.
    """
    if not all(sums.pairs for sums in (xx, yy, xy)):
        raise invalid("features", "none on one side", "one or more on each")
    means = [sums.total / sums.pairs for sums in (xx, yy, xy)]
    return scale * (means[0] + means[1] - 2 * means[2])
