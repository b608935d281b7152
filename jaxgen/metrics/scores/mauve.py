"""MAUVE and the frontier integral: the two errors of a generator, traced between two histograms.

features -> `histograms` over joint k-means cells -> `mauve` in [0, 1], 1 for equal ones, and
`frontier_integral` in [0, 1], 0 for equal ones. Pillutla et al. 2021 and 2023; Liu et al. 2021 for
the integral and the smoothing.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from jaxgen.errors import invalid
from jaxgen.metrics.sets.inputs import table, tables

# Nodes of the quadrature over the mixture weight.
_NODES = 100


def histograms(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    cells: int | None = None,
    smoothing: float = 0.0,
    explained: float = 0.9,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(p [cells], q [cells]): shares of real [n, d] and generated [m, d] features in each cell.

    Features are scaled to length 1, brought to the principal components that hold `explained` of
    the variance, and clustered jointly. cells: a tenth of the smaller side unless given, as the
    authors do; scores of other numbers of cells do not compare. smoothing: added to each count, 1/2
    for the Krichevsky-Trofimov estimate of the 2023 paper ("MAUVE*").
    """
    sides = tables(("real features", real), ("generated features", generated), least=2)
    both = np.concatenate(sides)
    cells = max(2, round(min(map(len, sides)) / 10)) if cells is None else cells
    if not 1 <= cells <= len(both):
        raise invalid("mauve cells", cells, f"1 to {len(both)}, the images of both sides")
    if smoothing < 0 or not 0 < explained < 1:
        raise invalid("mauve smoothing, explained", (smoothing, explained), ">= 0; between 0 and 1")
    lengths = np.linalg.norm(both, axis=1, keepdims=True)
    both = both / np.where(lengths > 0, lengths, 1.0)
    if (both == both[0]).all():
        labels = np.zeros(len(both), np.int64)
    else:
        both = PCA(explained, svd_solver="full").fit_transform(both)
        labels = KMeans(cells, n_init=5, random_state=seed).fit(both).labels_
    split = len(sides[0])
    counts = [np.bincount(half, minlength=cells) for half in (labels[:split], labels[split:])]
    p, q = ((count + smoothing) / (count + smoothing).sum() for count in counts)
    return p, q


def frontier(
    p: np.ndarray, q: np.ndarray, weights: np.ndarray, *, scale: float = 5.0
) -> np.ndarray:
    """Points [k, 2] of the divergence frontier of histograms at mixture weights [k] in [0, 1].

    exp(-c KL(q || r)) and exp(-c KL(p || r)) with r = w p + (1 - w) q and c = `scale`: how much of
    the samples is real, and how much of the real data is sampled.
    """
    p, q = _pair(p, q)
    r = weights[:, None] * p + (1 - weights[:, None]) * q
    return np.exp(-scale * np.stack([_divergences(q, r), _divergences(p, r)], 1))


def mauve(p: np.ndarray, q: np.ndarray, *, scale: float = 5.0) -> float:
    """The area under the frontier of histograms, by Gauss-Legendre quadrature of y dx.

    Symmetric; 1 for p = q and 1 / C(2c, c) for disjoint ones. The authors' package takes trapezoids
    between 25 points instead, which is up to 0.001 off.
    """
    if not scale > 0:
        raise invalid("mauve scale", scale, "a positive number")
    p, q = _pair(p, q)
    corner = frontier(p, q, np.array([0.5]), scale=scale)[0]
    # Right of the corner at w = 1/2 by y dx, above it by x dy: neither slope is ever infinite.
    return float(corner.prod() + _half(p, q, scale) + _half(q, p, scale))


def _half(p: np.ndarray, q: np.ndarray, scale: float) -> float:
    """- int y dx over mixture weights from 0 to 1/2."""
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    # w = t^3 / 2: close steps at 0, where y may start as any small power of w.
    t = (nodes + 1) / 2
    w = t**3 / 2
    x, y = frontier(p, q, w, scale=scale).T
    a, b = p[q > 0], q[q > 0]
    slope = scale * x * (b * (b - a) / (w[:, None] * a + (1 - w[:, None]) * b)).sum(1)
    return float((shares / 2 * 1.5 * t * t * y * slope).sum())


def frontier_integral(p: np.ndarray, q: np.ndarray) -> float:
    """2 int_0^1 w KL(p || r) + (1 - w) KL(q || r) dw, r = w p + (1 - w) q, in closed form.

    0 for p = q, 1 for disjoint histograms (Liu et al. 2021).
    """
    p, q = _pair(p, q)
    total = (p + q) / 2
    both = (p > 0) & (q > 0) & (abs(p - q) > 1e-9 * (p + q))
    a, b = p[both], q[both]
    total[both] -= a * b * np.log(a / b) / (a - b)
    total[(p > 0) & (q > 0) & ~both] = 0.0
    return float(total.sum())


def _pair(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, q = (table("histogram", np.asarray(side)[None])[0] for side in (p, q))
    if (
        p.shape != q.shape
        or min(p.min(), q.min()) < 0
        or abs(np.array([p, q]).sum(1) - 1).max() > 1e-6
    ):
        raise invalid("histograms", (p.shape, q.shape), "two of one length, >= 0, that sum to 1")
    return p, q


def _divergences(p: np.ndarray, r: np.ndarray) -> np.ndarray:
    """KL(p || r) [k] of p [n] to each row of r [k, n]; infinite where r lacks a cell of p."""
    some = p > 0
    with np.errstate(divide="ignore"):
        logs = np.log(p[some]) - np.log(r[:, some])
    return logs @ p[some]
