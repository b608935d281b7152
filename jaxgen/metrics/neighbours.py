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
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import invalid

T = TypeVar("T")

# Entries of a block of distances on all devices together: 256 MiB in float32.
_ENTRIES = 1 << 26
# Entries on the host, in float64.
_HOST_ENTRIES = 1 << 23
# Entries of differences at a time.
_CACHED = 1 << 19
# Points on a side of a tile, where the nearest ones are looked for.
_TILE = 2048
# Points of a group, of which only the nearest is looked at at first.
_GROUP = 16
# Points that are centred at a time.
_SLICE = 256
# Limits in a byte: a bit each for what is surely within, and for what is not sure.
_PACKED = 4
_UNSURE = 0xF0
# A 1 in each byte of a word.
_ONES = np.uint64(0x0101010101010101)
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
        rows = x[start : start + block]
        sizes = np.einsum("nd,nd->n", rows, rows)[:, None] + norms
        squared = sizes - 2 * rows @ y.T
        close = np.nonzero(squared <= 1e-7 * sizes)
        squared[close] = _between(rows, y, *close)
        yield slice(start, start + len(rows)), squared


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
    distances, _ = smallest(features, features, max(ks) + 1)
    return {k: distances[:, k] for k in ks}


def smallest(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest squared distances float64 [n, k] of x [n, d] to y [m, d], and whose they are.

    Ascending; int64 [n, k] indices of y, the lower one first among equals where both are found.
    """
    if not 1 <= k <= len(y):
        raise invalid("k", k, f"1 to {len(y)}, the number of points")
    pair = _Pair(x, y)
    squared, index = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
    wide = min(k + _SPARE, len(y))
    least, indices = _candidates(pair, wide)
    block = max(1, _HOST_ENTRIES // (x.shape[1] * wide))
    for start in range(0, len(x), block):
        i = np.arange(start, min(start + block, len(x)))
        chosen = indices[i]
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

    def tiles() -> Iterator[tuple[slice, slice, Any, Any]]:
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            block = pair.put(pair.x32[rows], size, "rows")
            for first in range(start if same else 0, m, size):
                columns = slice(first, min(first + size, m))
                other = pair.put(pair.y32[columns], size)
                twice = same and first > start
                yield rows, columns, *_closest(block, other, min(count, size), twice)

    for rows, columns, of_rows, of_columns in _ahead(tiles()):
        keep(rows, of_rows, columns.start)
        if of_columns:
            keep(columns, of_columns, rows.start)
    return best[:, -1], where


def _ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The same, the next one asked of the devices before the host looks at each."""
    last: list[T] = []
    for new in blocks:
        yield from last
        last = [new]
    yield from last


def within(x: np.ndarray, y: np.ndarray, thresholds: Sequence[Threshold]) -> list[Counts]:
    """How many pairs of x [n, d] and y [m, d] are within each threshold, by row and by column."""
    pair = _Pair(x, y)
    counted = [Counts(np.zeros(len(x), np.int64), np.zeros(len(y), np.int64)) for _ in thresholds]
    for rows, codes in _ahead(pair.blocks(_decided, thresholds)):
        words = [_words(code, rows.stop - rows.start) for code in codes]
        unsure = [_unsure(part) for part in words]
        for number, (t, counts) in enumerate(zip(thresholds, counted, strict=True)):
            part, place = divmod(number, _PACKED)
            inside = (words[part] >> np.uint64(place)) & _ONES
            counts.rows[rows] += np.bitwise_count(inside).sum(1, dtype=np.int64)
            counts.columns[:] += _of_columns(inside)[: len(y)]
            i, j, code = unsure[part]
            chosen = (code >> (place + _PACKED)) & 1 > 0
            i, j = i[chosen] + rows.start, j[chosen]
            squared = pair.exact(i, j)
            against = t.radii[i if t.around == "rows" else j]
            inside = squared < against if t.strict else squared <= against
            np.add.at(counts.rows, i[inside], 1)
            np.add.at(counts.columns, j[inside], 1)
    return counted


def _words(codes: jax.Array, size: int) -> np.ndarray:
    """The first `size` rows of codes uint8 [n, m] as uint64 [size, m / 8]: eight at a time."""
    return np.ascontiguousarray(np.asarray(codes)[:size]).view(np.uint64)


def _unsure(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where there is an unsure pair, and its code. Almost nowhere."""
    i, j = np.nonzero(words & (_ONES * np.uint64(_UNSURE)))
    j = (8 * j[:, None] + np.arange(8)).ravel()
    i = np.repeat(i, 8)
    code = words.view(np.uint8)[i, j]
    there = code & _UNSURE > 0
    return i[there], j[there], code[there]


def _of_columns(inside: np.ndarray) -> np.ndarray:
    """Column sums int64 [m] of bytes of 0 and 1, as words uint64 [n, m / 8]."""
    total = np.zeros(8 * inside.shape[1], np.int64)
    # A byte holds 255.
    for start in range(0, len(inside), 255):
        total += inside[start : start + 255].sum(0, dtype=np.uint64).view(np.uint8)
    return total


class _Pair:
    """Two sets of points, in float32 on the devices and as given on the host.

    The points on the devices are about the mean of y, so that rounding is that of the spread and
    not of the distance to the origin; very large or small ones are divided by the largest norm.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(y):
            raise invalid("features", (x.shape, y.shape), "shapes [N, d] and [M, d] with one d")
        self.x, self.y = x, y
        centre = y.mean(0, dtype=np.float64)
        if x.dtype == y.dtype == np.float32:
            centre = centre.astype(np.float32)

        def put_about(centre: np.ndarray, scale: float) -> float:
            self.y32, largest = _about(y, centre, scale)
            self.x32, other = (self.y32, largest) if x is y else _about(x, centre, scale)
            return max(largest, other)

        self.scale = 1.0
        if not 1e-12 < put_about(centre, 1.0) < 1e12:
            # Squares could leave float32's range.
            centre = centre.astype(np.float64)
            largest = put_about(centre, 1.0)
            # A power of two, division by which does not round.
            self.scale = float(np.exp2(np.ceil(np.log2(largest) / 2))) if largest else 1.0
            put_about(centre, self.scale)
        devices = np.array(jax.local_devices())
        self.mesh = Mesh(devices, "rows")

        def even(points: int, most: float) -> int:
            """The size of equal parts, at most `most` and a multiple of the devices."""
            size = -(-points // max(1, -(-points // max(1, int(most)))))
            return max(1, -(-size // len(devices))) * len(devices)

        self.block = even(len(x), _ENTRIES / len(y))
        # Of whole groups, in which the nearest are looked for first.
        unit = int(np.lcm(_GROUP, len(devices)))
        self.tile = -(-even(max(len(x), len(y)), _TILE) // unit) * unit

    def exact(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Squared distances of the pairs x[i], y[j]."""
        return _between(self.x, self.y, i, j)

    def put(self, points: np.ndarray, size: int, spec: str | None = None) -> jax.Array:
        """Points on the devices, padded with rows of NaN, which are within nothing."""
        if len(points) < size:
            lost = ((0, size - len(points)), (0, 0))
            points = np.pad(points, lost, constant_values=np.nan)
        return jax.device_put(points, NamedSharding(self.mesh, PartitionSpec(spec)))

    def blocks(
        self, reduce: Callable[..., Any], thresholds: Sequence[Threshold]
    ) -> Iterator[tuple[slice, Any]]:
        """(rows, what `reduce` makes of their distances), a block of rows at a time, padded."""
        by_row = NamedSharding(self.mesh, PartitionSpec("rows"))
        whole = NamedSharding(self.mesh, PartitionSpec())
        # To whole words of codes.
        spare = -len(self.y) % 8
        y = self.put(self.y32, len(self.y) + spare)
        sides = [t.around for t in thresholds]
        limits = [(t.radii / self.scale**2).astype(np.float32) for t in thresholds]
        for start in range(0, len(self.x), self.block):
            rows = slice(start, min(start + self.block, len(self.x)))
            lost = self.block - (rows.stop - rows.start)
            block = self.put(self.x32[rows], self.block, "rows")
            given = [
                jax.device_put(np.pad(limit[rows], (0, lost))[:, None], by_row)
                if side == "rows"
                else jax.device_put(np.pad(limit, (0, spare))[None], whole)
                for side, limit in zip(sides, limits, strict=True)
            ]
            yield rows, reduce(block, y, given)


def _about(x: np.ndarray, centre: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """((x - centre) / scale as float32, the largest squared norm of x - centre, in its dtype)."""
    centred = np.empty(x.shape, np.float32)

    def fill(start: int) -> float:
        rows = slice(start, start + _SLICE)
        with np.errstate(over="ignore"):
            apart = x[rows] - centre
            centred[rows] = apart if scale == 1 else apart / scale
            return float(np.einsum("nd,nd->n", apart, apart).max())

    return centred, max(_threaded(fill, range(0, len(x), _SLICE)), default=0.0)


def _threaded(fn: Callable[[int], T], starts: Sequence[int]) -> list[T]:
    """`fn` of each start, on the host's cores where there are enough to share."""
    if len(starts) < 4:
        return [fn(start) for start in starts]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(fn, starts))


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
def _decided(x: jax.Array, y: jax.Array, limits: list[jax.Array]) -> list[jax.Array]:
    """Codes uint8 [n, m] of pairs, each of up to four limits on squared distances.

    Bit i says that the pair is surely within limit i, bit 4 + i that it is not sure. The distances
    are read once, and the codes are a quarter of their size.
    """
    squared, rounding = _distances(x, y)
    codes = []
    for first in range(0, len(limits), _PACKED):
        some = limits[first : first + _PACKED]
        code = jnp.zeros(squared.shape, jnp.uint8)
        for place, limit in enumerate(some):
            above = squared - limit
            code |= (above < -rounding).astype(jnp.uint8) << place
            code |= (jnp.abs(above) <= rounding).astype(jnp.uint8) << (place + _PACKED)
        codes.append(code)
    return codes


@functools.partial(jax.jit, static_argnums=(2, 3))
def _closest(x: jax.Array, y: jax.Array, count: int, columns: bool) -> tuple[Any, Any]:
    """The `count` smallest of the squared distances less their rounding in each row, and where.

    columns: the same for each column; otherwise nothing. Rows of NaN are infinitely far.
    """
    squared, rounding = _distances(x, y)
    least = jnp.nan_to_num(rounding - squared, nan=-jnp.inf, posinf=-jnp.inf, neginf=-jnp.inf)
    # Otherwise XLA makes it once for the rows and once for the columns.
    least = jax.lax.optimization_barrier(least)
    return _largest(least, count, 1), _largest(least, count, 0) if columns else None


def _largest(a: jax.Array, count: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """(minus the `count` largest along an axis of a matrix, where along it), by groups' largest.

    Both [the other axis, count]. The `count` largest lie in the `count` groups whose largest are
    largest. A group is every (size / _GROUP)-th place, so that the maxima are taken of whole
    stretches of memory, in which a column is read too without transposing anything large.
    """
    size, others = a.shape[axis], a.shape[1 - axis]
    apart = size // _GROUP
    if size % _GROUP or 4 * count > apart:
        values, index = jax.lax.top_k(a if axis else a.T, count)
        return -values, index
    if axis:
        grouped = a.reshape(others, _GROUP, apart)
        groups = jax.lax.top_k(grouped.max(1), count)[1]
        some = jnp.take_along_axis(grouped, groups[:, None], 2).reshape(others, -1)
    else:
        grouped = a.reshape(_GROUP, apart, others)
        # Reduced over its first axis, XLA reads an array a column at a time.
        most = jax.lax.fori_loop(1, _GROUP, lambda i, m: jnp.maximum(m, grouped[i]), grouped[0])
        groups = jax.lax.top_k(most.T, count)[1]
        some = jnp.take_along_axis(grouped, groups.T[None], 1).reshape(-1, others).T
    values, place = jax.lax.top_k(some, count)
    return -values, place // count * apart + jnp.take_along_axis(groups, place % count, 1)


def _row_smallest(pair: _Pair, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    exact = pair.exact(np.full(len(pair.y), row), np.arange(len(pair.y)))
    chosen = np.argsort(exact, kind="stable")[:k]
    return exact[chosen], chosen


def _between(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Squared distances float64 of the pairs x[i], y[j], from their differences."""
    i, j = np.broadcast_arrays(i, j)
    squared, shape = np.empty(i.size), i.shape
    i, j = i.ravel(), j.ravel()
    block = max(1, _CACHED // x.shape[1])

    def fill(start: int) -> None:
        chosen = slice(start, start + block)
        apart = x[i[chosen]].astype(np.float64)
        apart -= y[j[chosen]]
        squared[chosen] = np.einsum("nd,nd->n", apart, apart)

    _threaded(fill, range(0, len(i), block))
    return squared.reshape(shape)
