"""Nearest neighbours and counts of points in balls: exact to float64, at float32's speed.

A block of distances is made on the devices in float32, with a bound on its rounding, and reduced
there: only what the bound leaves undecided is computed again on the host, in float64 and from the
differences themselves. So the answers do not depend on the device, on how many there are, or on
where the origin lies, and exact duplicates are at distance exactly 0. No more than a block of
distances exists at a time.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import invalid

# Entries of a block of distances on all devices together: 256 MiB in float32.
_ENTRIES = 1 << 26
# Entries on the host, in float64.
_HOST_ENTRIES = 1 << 23
# Entries of differences at a time, in a core's cache.
_CACHED = 1 << 17
# Points on a side of a tile, where the nearest ones are looked for.
_TILE = 4096
# Candidates beyond the k asked for, so that rounding seldom leaves a neighbour out.
_SPARE = 3


def distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, squared distances float64 [rows, m]) of x [n, d] to y [m, d], a block at a time.

    From products of float64; what their rounding could have made is taken from the differences.
    """
    centre = np.asarray(y, np.float64).mean(0)
    x, y = x - centre, y - centre
    norms = np.einsum("nd,nd->n", y, y)
    block = max(1, _HOST_ENTRIES // len(y))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        sizes = np.einsum("nd,nd->n", part, part)[:, None] + norms
        squared = sizes - 2 * part @ y.T
        close = np.nonzero(squared <= 1e-7 * sizes)
        squared[close] = _between(part, y, *close)
        yield slice(start, start + len(part)), squared


class Threshold(NamedTuple):
    """Squared radii float64 of balls, and which side they are around.

    radii: [n] with `around="rows"` or [m] with `around="columns"`. strict: the rim is outside.
    """

    radii: np.ndarray
    around: str
    strict: bool


class Counts(NamedTuple):
    """For each row [n] and for each column [m], the pairs whose distance is within a threshold."""

    rows: np.ndarray
    columns: np.ndarray


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance [n] of each row of x [n, d] to its nearest row of y [m, d]."""
    return np.sqrt(smallest(x, y, 1)[0][:, 0])


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of each row to its k-th nearest other row; needs n > k."""
    return own_radii(features, (k,))[k]


def own_radii(features: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """`radii` for several k, from one pass over the distances: k -> [n]."""
    for k in ks:
        if not 1 <= k < len(features):
            allowed = f"1 to {len(features) - 1}, fewer than the {len(features)} images"
            raise invalid("k", k, allowed)
    # The row itself is one of the k + 1 smallest, at distance 0.
    found, _ = smallest(features, features, max(ks) + 1)
    return {k: found[:, k] for k in ks}


def smallest(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest squared distances float64 [n, k] of x [n, d] to y [m, d], and whose they are.

    Ascending; int64 [n, k] indices of y, the lower one first among equals where both are found.
    """
    if not 1 <= k <= len(y):
        raise invalid("k", k, f"1 to {len(y)}, the number of points")
    pair = _Pair(x, y)
    squared, index = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
    wide = min(k + _SPARE, len(y))
    least, found = _candidates(pair, wide)
    block = max(1, _HOST_ENTRIES // (x.shape[1] * wide))
    for start in range(0, len(x), block):
        i = np.arange(start, min(start + block, len(x)))
        chosen = found[i]
        exact = pair.exact(i[:, None], chosen)
        order = np.lexsort((chosen, exact))[:, :k]
        exact, chosen = (np.take_along_axis(a, order, 1) for a in (exact, chosen))
        if wide < len(y):
            # What was left out is at least as far as the least that the last candidate can be.
            left = least[i].astype(np.float64) * pair.scale**2
            for row in np.nonzero(exact[:, -1] > left)[0]:
                exact[row], chosen[row] = _row_smallest(pair, int(i[row]), k)
        squared[i], index[i] = exact, chosen
    return squared, index


def _candidates(pair: _Pair, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of y nearest to each row of x as far as float32 can tell: [n, count].

    Before them, the least squared distance float32 [n], scaled, that the last of them can be at.
    Tile by tile; among the points of one set a tile serves its rows and its columns.
    """
    n, m, size = len(pair.x), len(pair.y), pair.tile
    same = pair.x is pair.y
    best = np.full((n, count), np.inf, np.float32)
    where = np.zeros((n, count), np.int64)

    def keep(rows: slice, top: tuple[jax.Array, jax.Array], first: int) -> None:
        values, index = (np.asarray(a)[: rows.stop - rows.start] for a in top)
        both = np.concatenate([best[rows], values], 1)
        among = np.concatenate([where[rows], index + first], 1)
        order = np.argsort(both, 1, kind="stable")[:, :count]
        best[rows] = np.take_along_axis(both, order, 1)
        where[rows] = np.take_along_axis(among, order, 1)

    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        part = pair.put(pair.x32[rows], size, "rows")
        for first in range(start if same else 0, m, size):
            columns = slice(first, min(first + size, m))
            twice = same and first > start
            of_rows, of_columns = _closest(
                part, pair.put(pair.y32[columns], size), min(count, size), twice
            )
            keep(rows, of_rows, first)
            if twice:
                keep(columns, of_columns, start)
    return best[:, -1], where


def within(x: np.ndarray, y: np.ndarray, thresholds: Sequence[Threshold]) -> list[Counts]:
    """How many pairs of x [n, d] and y [m, d] are within each threshold, by row and by column."""
    pair = _Pair(x, y)
    found = [Counts(np.zeros(len(x), np.int64), np.zeros(len(y), np.int64)) for _ in thresholds]
    for rows, part in pair.blocks(_decided, thresholds):
        for t, counts, (row, column, mask) in zip(thresholds, found, part, strict=True):
            size = rows.stop - rows.start
            counts.rows[rows] += np.asarray(row)[:size]
            counts.columns[:] += np.asarray(column)
            i, j = np.nonzero(np.asarray(mask)[:size])
            i += rows.start
            squared = pair.exact(i, j)
            against = t.radii[i if t.around == "rows" else j]
            inside = squared < against if t.strict else squared <= against
            np.add.at(counts.rows, i[inside], 1)
            np.add.at(counts.columns, j[inside], 1)
    return found


class _Pair:
    """Two sets of points, in float32 on the devices and as given on the host.

    The points on the devices are about the mean of y and divided by the largest norm, so that
    nothing overflows and rounding is that of the spread and not of the distance to the origin.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(y):
            raise invalid("features", (x.shape, y.shape), "shapes [N, d] and [M, d] with one d")
        self.x, self.y = x, y
        centre = np.asarray(y, np.float64).mean(0)
        # Squared norms in float64, in slices: no copy of the points in float64 is ever whole.
        largest = max(_centred_norms(x, centre).max(initial=0), _centred_norms(y, centre).max())
        self.scale = float(np.sqrt(largest)) or 1.0
        devices = np.array(jax.local_devices())
        self.mesh = Mesh(devices, "rows")
        self.y32 = _shrunk(y, centre, self.scale)
        self.x32 = self.y32 if x is y else _shrunk(x, centre, self.scale)

        def even(points: int, most: float) -> int:
            """The size of equal parts, at most `most` and a multiple of the devices."""
            part = -(-points // max(1, -(-points // max(1, int(most)))))
            return max(1, -(-part // len(devices))) * len(devices)

        self.block = even(len(x), _ENTRIES / len(y))
        self.tile = even(max(len(x), len(y)), _TILE)

    def exact(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Squared distances of the pairs x[i], y[j]."""
        return _between(self.x, self.y, i, j)

    def put(self, points: np.ndarray, size: int, spec: str | None = None) -> jax.Array:
        """Points on the devices, padded with rows of NaN, which are within nothing."""
        lost = ((0, size - len(points)), (0, 0))
        padded = np.pad(points, lost, constant_values=np.nan)
        return jax.device_put(padded, NamedSharding(self.mesh, PartitionSpec(spec)))

    def blocks(
        self, reduce: Callable[..., Any], thresholds: Sequence[Threshold]
    ) -> Iterator[tuple[slice, Any]]:
        """(rows, what `reduce` makes of their distances), a block of rows at a time, padded."""
        by_row = NamedSharding(self.mesh, PartitionSpec("rows"))
        whole = NamedSharding(self.mesh, PartitionSpec())
        y = jax.device_put(self.y32, whole)
        sides = [t.around for t in thresholds]
        limits = [(t.radii / self.scale**2).astype(np.float32) for t in thresholds]
        for start in range(0, len(self.x), self.block):
            rows = slice(start, min(start + self.block, len(self.x)))
            lost = self.block - (rows.stop - rows.start)
            part = self.put(self.x32[rows], self.block, "rows")
            given = [
                jax.device_put(np.pad(limit[rows], (0, lost))[:, None], by_row)
                if side == "rows"
                else jax.device_put(limit[None], whole)
                for side, limit in zip(sides, limits, strict=True)
            ]
            yield rows, reduce(part, y, given)


def _centred_norms(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    parts = (x[i : i + 1024] - centre for i in range(0, len(x), 1024))
    return np.concatenate([np.einsum("nd,nd->n", a, a) for a in parts] or [np.zeros(0)])


def _shrunk(x: np.ndarray, centre: np.ndarray, scale: float) -> np.ndarray:
    found = np.empty(x.shape, np.float32)
    for i in range(0, len(x), 1024):
        found[i : i + 1024] = (x[i : i + 1024] - centre) / scale
    return found


def _distances(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared distances float32 [n, m] and a bound [n, m] on what rounding did to them.

    The sums of d products round by at most d u (|x| + |y|)^2 together (Higham 2002, section 3.1),
    u = 2^-24; all else, the points' own rounding included, by less than 8 u (|x| + |y|)^2.
    """
    xx, yy = (x * x).sum(1)[:, None], (y * y).sum(1)[None]
    products = jax.lax.dot_general(
        x, y, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    share = (x.shape[1] + 8) * 2.0**-24
    return xx + yy - 2 * products, share * (jnp.sqrt(xx) + jnp.sqrt(yy)) ** 2 + 1e-30


@jax.jit
def _decided(x: jax.Array, y: jax.Array, limits: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    """For each limit on squared distances: sure pairs by row and by column, and the unsure ones."""
    squared, rounding = _distances(x, y)
    found: list[tuple[jax.Array, ...]] = []
    for limit in limits:
        unsure = jnp.abs(squared - limit) <= rounding
        inside = (squared < limit) & ~unsure
        found.append((inside.sum(1), inside.sum(0), unsure))
    return found


@functools.partial(jax.jit, static_argnums=(2, 3))
def _closest(x: jax.Array, y: jax.Array, count: int, columns: bool) -> tuple[Any, Any]:
    """The `count` smallest of the squared distances less their rounding in each row, and where.

    columns: the same for each column; otherwise nothing. Rows of NaN are infinitely far.
    """
    squared, rounding = _distances(x, y)
    least = jnp.nan_to_num(rounding - squared, nan=-jnp.inf, posinf=-jnp.inf, neginf=-jnp.inf)

    def top(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, index = jax.lax.top_k(a, count)
        return -found, index

    return top(least), top(least.T) if columns else None


def _row_smallest(pair: _Pair, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    exact = pair.exact(np.full(len(pair.y), row), np.arange(len(pair.y)))
    chosen = np.argsort(exact, kind="stable")[:k]
    return exact[chosen], chosen


def _between(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Squared distances float64 of the pairs x[i], y[j], from their differences."""
    i, j = np.broadcast_arrays(i, j)
    found, shape = np.empty(i.size), i.shape
    i, j = i.ravel(), j.ravel()
    block = max(1, _CACHED // x.shape[1])

    def fill(start: int) -> None:
        part = slice(start, start + block)
        apart = np.subtract(x[i[part]], y[j[part]], dtype=np.float64)
        found[part] = np.einsum("nd,nd->n", apart, apart)

    starts = range(0, len(i), block)
    if len(starts) < 4:
        for start in starts:
            fill(start)
    else:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, starts))
    return found.reshape(shape)
