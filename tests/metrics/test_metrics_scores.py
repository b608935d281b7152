"""Laws of the scores: golden values, closed forms, invariances, streamed sums equal the whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.neighbors import NearestNeighbors

from jaxgen import testing
from jaxgen.data import Streamed
from jaxgen.data.source import in_memory
from jaxgen.errors import UsageError
from jaxgen.metrics import neighbours
from jaxgen.metrics.neighbours import nearest, radii
from jaxgen.metrics.scores.frechet import frechet_distance, gaussian_distance, merge, moments
from jaxgen.metrics.scores.inception_score import (
    inception_score,
    inception_score_splits,
    merge_scores,
    score_sums,
)
from jaxgen.metrics.scores.kernel import (
    kid,
    kid_estimates,
    merge_sums,
    polynomial_mmd,
    rbf_mmd,
    rbf_sums,
)
from jaxgen.metrics.scores.manifold import coverage, density, manifold, precision, recall, scores
from jaxgen.metrics.scores.memorisation import (
    memorised_share,
    nearest_training,
    ranked,
    threshold,
    train_distances,
)
from jaxgen.metrics.sets.quantise import finite, quantise

ROWS, COLUMNS = np.arange(1, 65)[:, None], np.arange(1, 5)[None]
X = np.sin(0.37 * ROWS * COLUMNS)
Y = 0.5 + 1.3 * np.cos(0.23 * ROWS * (COLUMNS + 1))
SOFT = np.exp(3 * X) / np.exp(3 * X).sum(1, keepdims=True)


def fd(x, y):
    return frechet_distance(moments(x), moments(y))


def cmmd(x, y, sigma=10.0):
    return rbf_mmd(*(rbf_sums(a, b, sigma=sigma) for a, b in ((x, x), (y, y), (x, y))))


def prdc(x, y, k=3, strict=True):
    real, fake = manifold(x, k=k), manifold(y, k=k)
    return np.array(
        [
            precision(real, y, strict=strict),
            recall(fake, x, strict=strict),
            density(real, y, strict=strict),
            coverage(real, y, strict=strict),
        ]
    )


SCORES = {
    "fd": (fd, 1.0144009595365242),
    "kid": (polynomial_mmd, 1.1644249965733886),
    "cmmd": (cmmd, 8.042136770321617),
    "prdc": (prdc, [0.078125, 0.0625, 0.078125, 0.046875]),
}


@pytest.mark.parametrize("name", SCORES)
def test_golden_values(name):
    score, expected = SCORES[name]
    np.testing.assert_allclose(score(X, Y), expected, rtol=1e-10)


def test_golden_inception_score_and_covariance_part():
    np.testing.assert_allclose(inception_score(score_sums(SOFT)), 1.830021702358276, rtol=1e-12)
    part = gaussian_distance(np.zeros(2), [[2, 1], [1, 2]], np.zeros(2), np.diag([1.0, 3.0]))
    np.testing.assert_allclose(part, 8 - 2 * np.sqrt(14), rtol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_scores_do_not_depend_on_order_or_rotation(name):
    testing.check_metric(SCORES[name][0], X, Y, invariant={"rotation": testing.rotation})


@pytest.mark.parametrize("name", ["fd", "kid", "cmmd"])
def test_distances_are_symmetric(name):
    score, expected = SCORES[name]
    np.testing.assert_allclose(score(Y, X), expected, rtol=1e-9)


def test_swapping_the_sides_swaps_precision_and_recall():
    chance = np.random.default_rng(2)
    x, y = chance.normal(size=(80, 3)), 0.7 * chance.normal(size=(60, 3)) + 0.5
    forward, backward = prdc(x, y, strict=False), prdc(y, x, strict=False)
    assert forward[0] == backward[1] and forward[1] == backward[0] and forward[0] != forward[1]


# --- Frechet


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_streamed_moments_equal_the_whole_also_far_from_the_origin(shift):
    chance = np.random.default_rng(3)
    x = (chance.normal(size=(3000, 5)) + shift).astype(np.float32)
    y = (1.5 * chance.normal(size=(2000, 5)) + shift).astype(np.float32)
    shards = [moments(part) for part in np.split(x, [1, 700, 701, 2500])]
    merged = merge(shards)
    assert merged.size == 3000
    np.testing.assert_allclose(merged.covariance, np.cov(x.astype(float).T), rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(merged, moments(y)), fd(x, y), rtol=1e-9)
    np.testing.assert_allclose(
        fd(x, y), fd(x.astype(float) - shift, y.astype(float) - shift), rtol=1e-7
    )


@pytest.mark.parametrize("rank", [2, 6])
def test_gaussian_distance_agrees_with_the_matrix_square_root(rank):
    chance = np.random.default_rng(4)
    a, b = chance.normal(size=(6, 6)), chance.normal(size=(6, rank))
    a, b = a @ a.T, b @ b.T + 1e-9 * np.eye(6)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    np.testing.assert_allclose(
        gaussian_distance(np.zeros(6), a, np.zeros(6), b), expected, rtol=1e-6
    )


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (2.0, 1.0), (0.3, 2.5)])
def test_frechet_of_isotropic_gaussians_is_its_closed_form(shift, scale):
    d = 7
    exact = gaussian_distance(np.zeros(d), np.eye(d), np.full(d, shift), scale**2 * np.eye(d))
    np.testing.assert_allclose(exact, d * shift**2 + d * (1 - scale) ** 2, atol=1e-12)


def test_frechet_sampling_floor_is_the_expected_one():
    d, n = 8, 400
    chance = np.random.default_rng(5)
    found = []
    for _ in range(60):
        side = moments(chance.normal(size=(n, d)))
        found.append(gaussian_distance(np.zeros(d), np.eye(d), side.mean, side.covariance))
    floor = d / n + d * (d + 1) / (4 * n)
    assert abs(np.mean(found) - floor) < 5 * np.std(found) / np.sqrt(60) + 0.03 * floor


def test_frechet_refuses_singular_covariances_by_count():
    with pytest.raises(UsageError, match="generated features: got '4 images'; allowed: 5 or more"):
        fd(X, Y[:4])
    with pytest.raises(UsageError, match="features"):
        moments(np.zeros((0, 3)))


# --- kernels


def test_kid_of_gaussians_is_its_closed_form_and_subsets_are_seeded():
    d, scale = 4, 1.6
    chance = np.random.default_rng(6)
    x, y = chance.normal(size=(3000, d)), scale * chance.normal(size=(3000, d))
    estimates = kid_estimates(x, y, subsets=20, subset_size=300)
    value, error = kid(estimates)
    # The error is that of the subsets; the sets themselves add about as much again.
    assert abs(value - 3 * (1 - scale**2) ** 2 / d) < 8 * max(error, 0.03)
    np.testing.assert_array_equal(estimates, kid_estimates(x, y, subsets=20, subset_size=300))
    assert kid(kid_estimates(x, y, subsets=3, subset_size=300, seed=1))[0] != value


def test_kid_is_unbiased_on_equal_laws():
    chance = np.random.default_rng(7)
    found = [polynomial_mmd(*chance.normal(size=(2, 50, 3))) for _ in range(300)]
    assert abs(np.mean(found)) < 5 * np.std(found) / np.sqrt(300)


def test_one_subset_of_everything_is_the_plain_distance():
    value, error = kid(kid_estimates(X, Y, subsets=1, subset_size=64))
    np.testing.assert_allclose(value, 1.1644249965733886, rtol=1e-10)
    assert error == 0.0
    with pytest.raises(UsageError, match="kid subset_size: got 65; allowed: 2 to 64"):
        kid_estimates(X, Y, subset_size=65)


def test_rbf_distance_of_gaussians_is_its_closed_form():
    d, sigma, s1, s2 = 3, 2.0, 1.0, 1.8
    apart = np.array([0.5, -1.0, 0.25])

    def f(v, squared):
        return (1 + v / sigma**2) ** (-d / 2) * np.exp(-squared / (2 * (sigma**2 + v)))

    exact = 1000 * (f(2 * s1**2, 0) + f(2 * s2**2, 0) - 2 * f(s1**2 + s2**2, apart @ apart))
    chance = np.random.default_rng(8)
    x, y = s1 * chance.normal(size=(2000, d)), s2 * chance.normal(size=(2000, d)) + apart
    np.testing.assert_allclose(cmmd(x, y, sigma=sigma), exact, rtol=0.08)


def test_rbf_sums_over_blocks_and_shards_equal_the_whole():
    whole = rbf_sums(X, Y, sigma=3.0)
    blocks = rbf_sums(X, Y, sigma=3.0, block=7)
    shards = merge_sums(rbf_sums(part, Y, sigma=3.0) for part in np.split(X, [10, 11]))
    for other in (blocks, shards):
        np.testing.assert_allclose(other.total, whole.total, rtol=1e-12)
        assert other.pairs == whole.pairs == 64 * 64


# --- manifolds


def test_radii_and_nearest_agree_with_scikit_learn():
    chance = np.random.default_rng(9)
    x, y = chance.normal(size=(2500, 6)) + 50, chance.normal(size=(700, 6)) + 50
    theirs = NearestNeighbors(n_neighbors=4).fit(y)
    np.testing.assert_allclose(np.sqrt(radii(y, 3)), theirs.kneighbors(y)[0][:, 3], rtol=1e-8)
    np.testing.assert_allclose(nearest(x, y), theirs.kneighbors(x)[0][:, 0], rtol=1e-8)


def test_blocks_do_not_change_the_distances(monkeypatch):
    whole = list(neighbours.distance_blocks(X, Y))
    monkeypatch.setattr(neighbours, "_HOST_ENTRIES", 64 * 5)
    parts = list(neighbours.distance_blocks(X, Y))
    assert len(whole) == 1 and len(parts) == 13
    np.testing.assert_allclose(np.concatenate([d for _, d in parts]), whole[0][1], rtol=1e-12)


def test_exact_duplicates_count_unless_strict():
    points = np.repeat(np.random.default_rng(10).normal(size=(20, 5)) + 100, 4, axis=0)
    np.testing.assert_array_equal(prdc(points, points, strict=True), 0.0)
    precise, recalled, _, covered = prdc(points, points, strict=False)
    assert precise == recalled == covered == 1.0


def test_copies_are_at_distance_zero_whatever_the_rounding(monkeypatch):
    monkeypatch.setattr(neighbours, "_ENTRIES", 1 << 20)
    points = np.random.default_rng(10).normal(size=(1500, 301)) + 3
    np.testing.assert_array_equal(nearest(points[::-1], points), 0.0)


def test_coverage_of_a_law_against_itself_is_its_closed_form():
    n, k = 300, 3
    chance = np.random.default_rng(11)
    exact = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    found = [
        coverage(manifold(chance.normal(size=(n, 2)), k=k), chance.normal(size=(n, 2)))
        for _ in range(40)
    ]
    assert abs(np.mean(found) - exact) < 5 * np.std(found) / np.sqrt(40) + 1e-3


def test_density_of_a_law_against_itself_is_one_in_expectation():
    chance = np.random.default_rng(12)
    found = [
        density(manifold(chance.normal(size=(300, 2)), k=5), chance.normal(size=(300, 2)))
        for _ in range(40)
    ]
    assert abs(np.mean(found) - 1) < 5 * np.std(found) / np.sqrt(40)


def test_a_manifold_needs_more_points_than_neighbours():
    with pytest.raises(UsageError, match="k: got 3; allowed: 1 to 2"):
        manifold(X[:3], k=3)


# --- inception score


def test_inception_score_bounds_shards_and_order():
    classes = 5
    np.testing.assert_allclose(inception_score(score_sums(np.full((9, classes), 0.2))), 1.0)
    certain = np.repeat(np.eye(classes), 6, axis=0)
    np.testing.assert_allclose(inception_score(score_sums(certain)), classes)
    parts = merge_scores(score_sums(p) for p in np.split(SOFT, [3, 40]))
    np.testing.assert_allclose(inception_score(parts), 1.830021702358276, rtol=1e-12)
    # Sorted by class, each split holds one class; shuffled, it holds them all.
    np.testing.assert_allclose(inception_score_splits(certain, splits=5, seed=None)[0], 1.0)
    assert inception_score_splits(certain, splits=5, seed=0)[0] > 2.5
    mean, deviation = inception_score_splits(SOFT, splits=1, seed=3)
    np.testing.assert_allclose([mean, deviation], [1.830021702358276, 0.0], rtol=1e-12)
    for splits in (0, 65):
        with pytest.raises(UsageError, match="splits"):
            inception_score_splits(SOFT, splits=splits, seed=0)


# --- memorisation and quantisation


def test_copies_are_memorised_and_fresh_images_are_not():
    chance = np.random.default_rng(13)
    train, test, fresh = chance.integers(0, 256, (3, 400, 4, 4, 1), np.uint8)
    limit = threshold(train_distances(test, train))
    assert memorised_share(train_distances(test, train), limit) == pytest.approx(0.01, abs=0.003)
    assert memorised_share(train_distances(fresh, train), limit) < 0.04
    half = np.concatenate([train[:200], fresh[:200]])
    assert 0.5 <= memorised_share(train_distances(half, train), limit) < 0.53
    with pytest.raises(UsageError, match="test images: got 50; allowed: 100 or more"):
        threshold(np.ones(50))


def test_the_nearest_training_image_is_scikit_learns_whether_streamed_or_not():
    chance = np.random.default_rng(3)
    train, images = (chance.uniform(-1, 1, (n, 2, 2, 1)).astype(np.float32) for n in (2500, 40))
    train[2000] = train[3] = images[5]
    there = NearestNeighbors(n_neighbors=1).fit(train.reshape(2500, -1))
    distances, places = (a[:, 0] for a in there.kneighbors(images.reshape(40, -1)))
    source = in_memory(train, np.zeros(2500, int))
    for given in (train, Streamed(source)):
        found, where = nearest_training(images, given)
        np.testing.assert_allclose(found, distances, atol=1e-5)
        assert (where == places).sum() >= 39 and where[5] == 3 and found[5] == 0
    chosen = ranked(found, 4)
    assert found[chosen[:4]].tolist() == sorted(found)[:4]
    assert found[chosen[4:]].tolist() == [sorted(found)[i] for i in (0, 13, 26, 39)]
    assert ranked(found[:3], 4).shape == (6,)


def test_quantise_rounds_half_up_is_unbiased_and_inverts_scaling():
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise((codes / 127.5 - 1).astype(np.float32)), codes)
    np.testing.assert_array_equal(quantise(np.array([-3.0, -1.0, 1.0, 3.0])), [0, 0, 255, 255])
    assert quantise(np.zeros(1)) == 128  # 127.5, half up
    values = np.random.default_rng(14).uniform(-1, 1, 100_000)
    bias = (quantise(values) - 127.5 * (values + 1)).mean()
    assert abs(bias) < 5 * np.sqrt(1 / 12 / 100_000)
    with pytest.raises(UsageError, match="finite"):
        quantise(np.array([np.nan]))
    np.testing.assert_array_equal(
        finite(np.array([[[1.0]], [[np.inf]], [[np.nan]]])), [True, False, False]
    )


def test_the_rim_counts_for_precision_and_recall_and_not_for_density_and_coverage():
    """Whole numbers, so that distances equal radii: Kynkaanniemi et al. say <=, Naeem et al. <."""
    rng = np.random.default_rng(2579)
    real, made = rng.permutation(60)[:12, None] * 1.0, rng.permutation(60)[:10, None] * 1.0
    apart = np.abs(made - real.T)

    def inside(points, k, distances, strict):
        """Whether a row is in the ball of a column, a point of radius to its k-th neighbour."""
        radius = np.sort(np.abs(points - points.T), 1)[:, k]
        return distances < radius if strict else distances <= radius

    def expected(turned):
        """The four scores; turned: each with the other's rule for the rim."""
        ours, theirs = inside(real, 3, apart, turned), inside(made, 3, apart.T, turned)
        far = inside(real, 5, apart, not turned)
        return {
            "precision": ours.any(1).mean(),
            "recall": theirs.any(1).mean(),
            "density": far.sum() / (5 * len(made)),
            "coverage": far.any(0).mean(),
        }

    balls = [{k: manifold(points, k=k) for k in (3, 5)} for points in (real, made)]
    values, other = scores(*balls), expected(turned=True)
    assert values == expected(turned=False)
    assert all(values[name] != other[name] for name in values), "no distance is a radius"


def test_memorised_share_is_of_distances_below_the_threshold():
    assert memorised_share(np.array([1.0, 2.0, 3.0, 4.0]), 2.0) == 0.25
