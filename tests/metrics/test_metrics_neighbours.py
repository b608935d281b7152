"""Neighbours and counts: float32 decides what it can, float64 the rest, on any devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxgen.metrics import neighbours
from jaxgen.metrics.neighbours import Threshold, own_radii, smallest, within
from jaxgen.metrics.scores.manifold import KINDS, manifolds, scores

SHAPES = {"few": (70, 50, 3), "wide": (90, 120, 600), "one": (5, 1, 2)}


def points(name: str, offset: float = 0.0, dtype=np.float64):
    n, m, d = SHAPES[name]
    chance = np.random.default_rng(len(name))
    return tuple((chance.normal(size=(k, d)) + offset).astype(dtype) for k in (n, m))


def exact(x, y):
    return cdist(x.astype(np.float64), y.astype(np.float64), "sqeuclidean")


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_the_smallest_are_those_of_all_distances(name, dtype, offset):
    x, y = points(name, offset, dtype)
    k = min(4, len(y))
    found, index = smallest(x, y, k)
    whole = exact(x, y)
    order = np.argsort(whole, 1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(found, np.take_along_axis(whole, order, 1), rtol=1e-12)


@pytest.mark.parametrize("entries", [1 << 26, 2000])
@pytest.mark.parametrize("strict", [True, False])
def test_counts_at_the_very_distances_are_right_on_either_side(strict, entries, monkeypatch):
    """Radii that are distances of the pairs: every one of them is undecided in float32."""
    monkeypatch.setattr(neighbours, "_ENTRIES", entries)
    x, y = points("wide")
    whole = exact(x, y)
    by_column, by_row = whole[7], whole[:, 11]
    # As the code under test sums, to the last bit: the rim is where it says.
    by_column = neighbours._between(x, y, np.full(len(y), 7), np.arange(len(y)))
    by_row = neighbours._between(x, y, np.arange(len(x)), np.full(len(x), 11))
    found = within(
        x, y, [Threshold(by_column, "columns", strict), Threshold(by_row, "rows", strict)]
    )
    pairs = neighbours._between(x, y, np.arange(len(x))[:, None], np.arange(len(y))[None])
    for counts, limit in zip(found, (by_column[None], by_row[:, None]), strict=True):
        inside = pairs < limit if strict else pairs <= limit
        np.testing.assert_array_equal(counts.rows, inside.sum(1))
        np.testing.assert_array_equal(counts.columns, inside.sum(0))
    # The rim itself: row 7 is in all of its balls, or in none.
    assert found[0].rows[7] == (0 if strict else len(y))


def test_limits_of_more_than_a_byte_and_sizes_of_no_whole_words():
    """Eleven limits, of both sides, of 50 columns; some pairs are on a rim, others are far off."""
    x, y = points("few")
    pairs = neighbours._between(x, y, np.arange(len(x))[:, None], np.arange(len(y))[None])
    limits = [
        Threshold(pairs[:, i] if i % 2 else pairs[i], "rows" if i % 2 else "columns", i % 3 == 0)
        for i in range(11)
    ]
    for limit, counts in zip(limits, within(x, y, limits), strict=True):
        radii = limit.radii[:, None] if limit.around == "rows" else limit.radii[None]
        inside = pairs < radii if limit.strict else pairs <= radii
        np.testing.assert_array_equal(counts.rows, inside.sum(1))
        np.testing.assert_array_equal(counts.columns, inside.sum(0))


def test_more_pairs_in_a_column_than_a_byte_counts():
    """600 points in every ball; the next 300 in none."""
    x = np.concatenate([np.zeros((600, 2)), np.full((300, 2), 9.0)])
    y = np.random.default_rng(0).normal(size=(11, 2)) / 10
    (counts,) = within(x, y, [Threshold(np.ones(11), "columns", True)])
    np.testing.assert_array_equal(counts.columns, 600)
    np.testing.assert_array_equal(counts.rows, np.repeat([11, 0], [600, 300]))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-7, 1e-5, 1e5, 1e7, 1e18, 1e30])
def test_squares_beyond_float32_are_no_trouble(scale):
    x, y = (a * np.float32(scale) for a in points("few", dtype=np.float32))
    found, index = smallest(x, y, 4)
    whole = exact(x, y)
    order = np.argsort(whole, 1, kind="stable")[:, :4]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(found, np.take_along_axis(whole, order, 1), rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("count", [1, 9, 65])
def test_the_largest_by_way_of_groups_are_the_largest(count, axis):
    """65 is too many for 256 groups of 16, which are then not formed."""
    chance = np.random.default_rng(count)
    a = chance.normal(size=(6, 4096)).astype(np.float32)
    # All of the largest in one group, in as many groups, and equal.
    a[0, :: neighbours._GROUP] += 10
    a[1, 5 :: 4096 // neighbours._GROUP] += 10
    a[2] = 3.0
    a[3, 20:] = -np.inf
    found = jax.jit(neighbours._largest, static_argnums=(1, 2))(a if axis else a.T, count, axis)
    values, where = (np.asarray(v) for v in found)
    np.testing.assert_array_equal(-values, np.sort(a, 1)[:, ::-1][:, :count])
    np.testing.assert_array_equal(np.take_along_axis(a, where, 1), -values)
    assert all(len(set(row)) == count for row in where)


def test_clusters_finer_than_float32_fall_back_and_stay_exact():
    chance = np.random.default_rng(3)
    centres = chance.normal(size=(4, 30)) * 10
    x = np.repeat(centres, 20, 0) + 1e-6 * chance.normal(size=(80, 30))
    whole = np.sort(((x[:, None] - x[None]) ** 2).sum(-1), 1)
    found = own_radii(x, (3, 5))
    for k in (3, 5):
        np.testing.assert_allclose(found[k], whole[:, k], rtol=1e-12)


@pytest.mark.parametrize("entries", [1 << 26, 1000, 1])
def test_neither_blocks_nor_devices_change_a_count(entries, monkeypatch):
    x, y = points("wide")
    x = x * 1.1
    whole = {k: np.sort(exact(a, a), 1) for k, a in (("x", x), ("y", y))}
    across = exact(x, y)
    expected = {
        "precision": (across <= whole["y"][:, 3]).any(1).mean(),
        "recall": (across <= whole["x"][:, 3][:, None]).any(0).mean(),
        "density": (across < whole["y"][:, 5]).sum() / (5 * len(x)),
        "coverage": (across < whole["y"][:, 5]).any(0).mean(),
    }
    monkeypatch.setattr(neighbours, "_ENTRIES", entries)
    monkeypatch.setattr(neighbours, "_TILE", min(entries, 50))
    devices = jax.local_devices()
    for count in (1, 2, 8):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        found = scores(manifolds(y, (3, 5)), manifolds(x, (3, 5)))
        assert found == pytest.approx(expected, abs=1e-15)
    assert set(found) == set(KINDS)


def test_a_bound_that_forgets_rounding_miscounts(monkeypatch):
    """The screen matters: with no bound on float32's rounding the rim is wrong."""
    x, y = points("wide", 3.0, np.float32)
    limit = neighbours._between(x, y, np.arange(len(x)), np.arange(len(x)))
    threshold = Threshold(limit, "rows", False)
    right = within(x, y, [threshold])[0].rows
    true = neighbours._distances
    careless = lambda a, b: (true(a, b)[0], np.float32(0.0))
    monkeypatch.setattr(neighbours, "_distances", careless)
    neighbours._decided.clear_cache()
    wrong = within(x, y, [threshold])[0].rows
    neighbours._decided.clear_cache()
    assert (right >= 1).all() and (wrong < right).any()


def test_what_does_not_go_together_is_refused():
    from jaxgen.errors import UsageError

    x, y = points("few")
    with pytest.raises(UsageError, match="with one d"):
        smallest(x, y[:, :2], 1)
    with pytest.raises(UsageError, match="the number of points"):
        smallest(x, y, 51)
