"""Nearest neighbours: exact, float64, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxgen.errors import invalid

# Squared distances below this share of the squared norms are rounding: the points coincide.
_ROUNDING = 1e-12
# Entries of a block of distances: 64 MiB in float64, whatever the number of points.
_ENTRIES = 1 << 23


def distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, squared distances [rows, m]) of x [n, d] to y [m, d], a block of rows at a time.

    Exact duplicates are at distance exactly 0, whatever the rounding of the products.
    """
    # Distances do not care where the origin is, but their rounding does.
    centre = np.asarray(y, np.float64).mean(0)
    x, y = x - centre, y - centre
    norms = np.einsum("nd,nd->n", y, y)
    block = max(1, _ENTRIES // len(y))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        sizes = np.einsum("nd,nd->n", part, part)[:, None] + norms
        squared = sizes - 2 * part @ y.T
        squared[squared <= _ROUNDING * sizes] = 0.0
        yield slice(start, start + len(part)), squared


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance [n] of each row of x [n, d] to its nearest row of y [m, d]."""
    found = np.empty(len(x))
    for rows, squared in distance_blocks(x, y):
        found[rows] = squared.min(1)
    return np.sqrt(found)


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of each row to its k-th nearest other row; needs n > k."""
    if not 1 <= k < len(features):
        raise invalid("k", k, f"1 to {len(features) - 1}, fewer than the {len(features)} images")
    found = np.empty(len(features))
    for rows, squared in distance_blocks(features, features):
        # The row itself is one of the k + 1 smallest, at distance 0.
        found[rows] = np.partition(squared, k, axis=1)[:, k]
    return found
