"""Sliced Wasserstein distance: the mean over directions of a distance that sorting solves.

features -> `projections` (sorted, one row a direction) -> `sliced_wasserstein`. Rabin et al. 2011,
Bonneel et al. 2015.
"""

from __future__ import annotations

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.sets.inputs import table


def directions(width: int, count: int = 256, *, seed: int = 0) -> np.ndarray:
    """`count` unit vectors [count, width], drawn uniformly from the sphere."""
    if count < 1:
        raise invalid("sliced directions", count, "1 or more")
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def projections(features: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Features [n, d] along unit vectors [k, d], each direction's sorted: [k, n]."""
    features = table("features", features)
    if features.shape[1] != along.shape[1]:
        raise invalid("features", features.shape, f"a shape [N, {along.shape[1]}]")
    return np.sort(along @ features.T, axis=1)


def wasserstein_powers(x: np.ndarray, y: np.ndarray, p: float) -> np.ndarray:
    """W_p^p [k] between rows of sorted numbers [k, n] and [k, m], exact for any n and m.

    The two quantile functions are steps; on each piece between their jumps both are constant.
    """
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (abs(x - y) ** p).mean(1)
    # Jumps in units of 1 / (n m): integers, so that equal ones are equal.
    jumps = np.union1d(np.arange(n, dtype=np.int64) * m, np.arange(m, dtype=np.int64) * n)
    weights = np.diff(np.append(jumps, n * m)) / (n * m)
    return (abs(x[:, jumps // m] - y[:, jumps // n]) ** p) @ weights


def sliced_wasserstein(real: np.ndarray, generated: np.ndarray, *, p: float = 2) -> float:
    """(mean over directions of W_p^p)^(1/p) of `projections` [k, n] and [k, m]; p >= 1.

    Both along the same directions. In the features' own units.
    """
    if not p >= 1:
        raise invalid("sliced p", p, "1 or more")
    if len(real) != len(generated):
        raise invalid("projections", (len(real), len(generated)), "as many directions on each side")
    return float(wasserstein_powers(real, generated, p).mean() ** (1 / p))
