"""Laws of the scores beside the main ones: closed forms, invariances, and others' libraries."""

from __future__ import annotations

import itertools
import sys
import types

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.metrics
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from jaxgen.errors import UsageError
from jaxgen.metrics.asymmetry import (
    complement_precision,
    complement_recall,
    symmetric_precision,
    symmetric_recall,
)
from jaxgen.metrics.authenticity import authentic, authenticity
from jaxgen.metrics.budget import expected_best, f_score
from jaxgen.metrics.classwise import class_moments, classwise_frechet
from jaxgen.metrics.copying import copied_share, copying_statistic, rank_statistic
from jaxgen.metrics.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.inception_score import inception_score, score_sums
from jaxgen.metrics.infinity import extrapolate, fd_infinity, inception_score_infinity
from jaxgen.metrics.inputs import distributions, tables
from jaxgen.metrics.label_information import entropies, label_information
from jaxgen.metrics.likelihood_divergence import fit, likelihood_divergence, mean_log_likelihood
from jaxgen.metrics.manifold import coverage, manifold, precision, recall
from jaxgen.metrics.mauve import frontier, frontier_integral, histograms, mauve
from jaxgen.metrics.pareto import front
from jaxgen.metrics.realism import pruned, realism
from jaxgen.metrics.sliced import (
    directions,
    projections,
    sliced_wasserstein,
    wasserstein_powers,
)
from jaxgen.metrics.vendi import spectrum, vendi_score

ROWS, COLUMNS = np.arange(1, 65)[:, None], np.arange(1, 5)[None]
X = np.sin(0.37 * ROWS * COLUMNS)
Y = 0.5 + 1.3 * np.cos(0.23 * ROWS * (COLUMNS + 1))
TURN = scipy.stats.ortho_group.rvs(4, random_state=1)
CHANCE = np.random.default_rng(0)
CLOUD = CHANCE.normal(size=(100, 4))
ORDER, OTHER = CHANCE.permutation(64), CHANCE.permutation(64)


def sliced(x, y, p=2, count=64):
    along = directions(x.shape[1], count)
    return sliced_wasserstein(projections(x, along), projections(y, along), p=p)


def balls(x, y, k=3):
    return manifold(x, k=k), manifold(y, k=k)


def values(x, y):
    """Every score here that rotations leave alone."""
    return {
        "vendi": vendi_score(spectrum(y)),
        "vendi_rbf": vendi_score(spectrum(y, kernel="rbf", sigma=0.7)),
        "authenticity": authenticity(x, y),
        "symmetric_precision": symmetric_precision(*balls(x, y)),
        "symmetric_recall": symmetric_recall(*balls(x, y)),
        "realism": np.sort(realism(pruned(manifold(x, k=3)), y)).sum(),
    }


def test_scores_do_not_depend_on_order_or_rotation():
    first = values(X, Y)
    for other in (values(X[ORDER], Y[OTHER]), values(X @ TURN, Y @ TURN)):
        assert first == pytest.approx(other, rel=1e-9)
    assert sliced(X, Y) == pytest.approx(sliced(X[ORDER], Y[OTHER]), rel=1e-12)
    along = directions(4, 64)
    turned = [projections(part @ TURN, along @ TURN) for part in (X, Y)]
    assert sliced_wasserstein(*turned) == pytest.approx(sliced(X, Y), rel=1e-9)


# --- Vendi


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, np.inf])
def test_vendi_counts_orthogonal_and_equal_items(order):
    assert vendi_score(spectrum(3 * np.eye(7)), order=order) == pytest.approx(7)
    assert vendi_score(spectrum(np.ones((9, 4))), order=order) == pytest.approx(1)
    # Far apart or on one spot for an RBF, five times each.
    places = 100.0 * np.repeat(np.arange(3.0)[:, None], 5, axis=0)
    found = vendi_score(spectrum(places, kernel="rbf", sigma=1.0), order=order)
    assert found == pytest.approx(3)


def test_vendi_of_two_kinds_is_the_entropy_of_their_shares():
    items = np.repeat(np.eye(2), [30, 10], axis=0)
    p = np.array([0.75, 0.25])
    assert vendi_score(spectrum(items)) == pytest.approx(np.exp(scipy.stats.entropy(p)))
    assert vendi_score(spectrum(items), order=2) == pytest.approx(1 / (p**2).sum())
    assert vendi_score(spectrum(items), order=np.inf) == pytest.approx(4 / 3)


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_spectrum_is_that_of_the_whole_kernel(kernel):
    sigma = {"cosine": None, "rbf": 0.7}[kernel]
    whole = cosine_similarity(X) if sigma is None else rbf_kernel(X, gamma=1 / (2 * sigma**2))
    expected = np.linalg.eigvalsh(whole / 64)[::-1]
    found = spectrum(X, kernel=kernel, sigma=sigma)
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-13)
    # Fewer rows than columns take the other Gram matrix.
    few = spectrum(X[:3], kernel=kernel, sigma=sigma)
    np.testing.assert_allclose(few, np.linalg.eigvalsh(whole[:3, :3] / 3)[::-1], atol=1e-13)


def test_vendi_falls_with_the_order():
    orders = [0, 0.3, 1 - 1e-9, 1, 1 + 1e-9, 2, 5, np.inf]
    found = [vendi_score(spectrum(X, kernel="rbf", sigma=0.7), order=q) for q in orders]
    assert (np.diff(found) <= 1e-6).all() and found[0] > 2 * found[-1]
    assert found[2] == pytest.approx(found[3], rel=1e-6) == found[4]


@pytest.mark.parity
def test_vendi_agrees_with_its_authors():
    theirs = pytest.importorskip("vendi_score.vendi")
    for q in (0.5, 1, 2):
        assert vendi_score(spectrum(X), order=q) == pytest.approx(theirs.score_dual(X, q=q))


# --- authenticity


def test_copies_are_not_authentic_and_fresh_draws_are_as_often_as_neighbours_are_not_mutual():
    chance = np.random.default_rng(1)
    for d, mutual in ((1, 2 / 3), (3, 16 / 27)):
        train, fresh = chance.normal(size=(2, 2000, d))
        # Samples share nearest points, so the spread is a little above that of coins.
        assert abs(authenticity(train, fresh) - (1 - mutual)) < 5 * 0.6 / np.sqrt(2000)
    assert authenticity(train, train[::-1]) == 0.0
    assert authenticity(train, train + 1e-9) == 0.0
    assert authenticity(train, fresh + 50) == 1.0
    # Duplicates in the training set have no room between them; a copy of one is still a copy.
    assert authenticity(np.repeat(train, 2, axis=0), train) == 0.0


def test_authenticity_is_that_of_nearest_neighbours():
    near = NearestNeighbors(n_neighbors=2).fit(X)
    distance, index = near.kneighbors(Y, 1)
    alone = near.kneighbors(X)[0][:, 1]
    np.testing.assert_array_equal(authentic(X, Y), distance[:, 0] > alone[index[:, 0]])
    with pytest.raises(UsageError, match=r"training features: got \(0, 4\)"):
        authenticity(X[:0], Y)


# --- sliced Wasserstein


def test_sliced_distance_of_a_shift_is_its_closed_form():
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    along = directions(4, 500, seed=3)
    assert sliced(X, X[ORDER] + shift, count=500) > 0
    for p in (1, 2):
        found = sliced_wasserstein(projections(X, along), projections(X + shift, along), p=p)
        assert found == pytest.approx((abs(along @ shift) ** p).mean() ** (1 / p), rel=1e-10)
    # Over all directions (t.m)^2 is |m|^2 / d.
    many = directions(4, 40_000)
    found = sliced_wasserstein(projections(X, many), projections(X + shift, many))
    assert found**2 == pytest.approx(shift @ shift / 4, rel=0.03)


@pytest.mark.parametrize("sizes", [(64, 64), (64, 40), (7, 64), (1, 5)])
def test_one_direction_is_scipys_distance(sizes):
    x, y = np.sort(X[: sizes[0], 0]), np.sort(Y[: sizes[1], 0])
    found = wasserstein_powers(x[None], y[None], 1)[0]
    assert found == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-12)
    # Repeating every number a whole number of times changes no distribution.
    again = wasserstein_powers(np.repeat(x, 3)[None], np.repeat(y, 2)[None], 2)[0]
    assert again == pytest.approx(wasserstein_powers(x[None], y[None], 2)[0], rel=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("p", [1, 2])
def test_sliced_distance_agrees_with_pot(p):
    ot = pytest.importorskip("ot")
    along = directions(4, 50)
    theirs = ot.sliced_wasserstein_distance(X, Y[:50], projections=along.T, p=p)
    found = sliced_wasserstein(projections(X, along), projections(Y[:50], along), p=p)
    assert found == pytest.approx(float(theirs), rel=1e-9)


def test_sliced_distance_refuses():
    with pytest.raises(UsageError, match="sliced p: got 0.5; allowed: 1 or more"):
        sliced(X, Y, p=0.5)
    with pytest.raises(UsageError, match="sliced directions: got 0"):
        directions(3, 0)
    with pytest.raises(UsageError, match="features"):
        projections(X, directions(3))
    with pytest.raises(UsageError, match="as many directions"):
        sliced_wasserstein(np.zeros((2, 5)), np.zeros((3, 5)))


# --- symmetric precision and recall, realism


def test_complements_are_counts_over_the_other_balls():
    real, made = balls(X, Y)
    apart = scipy.spatial.distance.cdist(X, Y)
    made_radius = np.sort(scipy.spatial.distance.cdist(Y, Y))[:, 3]
    real_radius = np.sort(scipy.spatial.distance.cdist(X, X))[:, 3]
    assert complement_precision(real, made) == (apart <= made_radius).any(0).mean()
    assert complement_recall(real, made) == (apart <= real_radius[:, None]).any(1).mean()
    assert symmetric_precision(real, made) == symmetric_recall(made, real)
    assert symmetric_precision(real, made) <= precision(real, Y)
    assert symmetric_recall(real, made) <= recall(made, X)


@pytest.mark.parity
def test_manifold_scores_agree_with_prdc():
    theirs = pytest.importorskip("prdc").compute_prdc(X, Y, nearest_k=5)
    swapped = pytest.importorskip("prdc").compute_prdc(Y, X, nearest_k=5)
    real, made = balls(X, Y, k=5)
    # No distance here is equal to a radius, so that strictness does not matter.
    assert symmetric_precision(real, made) == min(theirs["precision"], swapped["coverage"])
    assert symmetric_recall(real, made) == min(theirs["recall"], theirs["coverage"])
    assert coverage(real, Y) == theirs["coverage"]


def test_realism_is_one_exactly_on_the_rim_of_the_manifold():
    x, y = CLOUD[:60], 1.7 * CLOUD[60:]
    real = manifold(x, k=3)
    for spheres in (real, pruned(real)):
        score = realism(spheres, y)
        inside = [precision(spheres, row[None]) == 1 for row in y]
        np.testing.assert_array_equal(score >= 1, inside)
        assert 3 <= sum(inside) <= 37
        assert (realism(spheres, spheres.points) == np.inf).all()
    ratio = np.sqrt(real.radii) / scipy.spatial.distance.cdist(y, x)
    np.testing.assert_allclose(realism(real, y), ratio.max(1), rtol=1e-9)


def test_pruning_keeps_the_smaller_half_of_the_balls():
    real = manifold(np.concatenate([CLOUD[:60], [[9.0, 9, 9, 9]]]), k=3)
    kept = pruned(real)
    # Two points that are each other's third neighbour have the same ball.
    assert 31 <= len(kept.points) <= 33 and kept.radii.max() == np.median(real.radii)
    near = np.array([[8.0, 8, 8, 8]])
    assert realism(real, near)[0] > 1 > realism(kept, near)[0]


# --- infinitely many samples


def test_a_line_is_extrapolated_exactly():
    sizes = np.array([10, 20, 50, 1000])
    limit = extrapolate(sizes, 3.5 + 40 / sizes)
    assert (limit.value, limit.slope) == (pytest.approx(3.5), pytest.approx(40))
    with pytest.raises(UsageError, match="2 or more different sizes"):
        extrapolate(np.array([5, 5]), np.zeros(2))


def test_fd_infinity_takes_the_bias_off():
    d, n = 10, 800
    real = Moments(10**6, np.zeros(d), np.eye(d) * (10**6 - 1))
    floor = d / n + d * (d + 1) / (4 * n)
    found, plain = [], []
    for seed in range(30):
        made = np.random.default_rng(seed).normal(size=(n, d))
        found.append(fd_infinity(real, made, seed=seed).value)
        plain.append(frechet_distance(real, moments(made)))
    error = np.std(found) / np.sqrt(30)
    # The distance itself is 0.
    assert abs(np.mean(found)) < 4 * error < floor / 2
    assert np.mean(plain) == pytest.approx(floor, rel=0.1)
    assert found[-1] == fd_infinity(real, made, seed=29).value != fd_infinity(real, made).value


def test_inception_score_infinity_is_above_the_score_and_nearer_the_truth():
    classes, n = 40, 400
    # One-hot predictions: the mutual information is that of uniform classes, so the score is 40.
    found, plain = [], []
    for seed in range(20):
        p = np.eye(classes)[np.random.default_rng(seed).integers(0, classes, n)]
        found.append(inception_score_infinity(p, seed=seed).value)
        plain.append(inception_score(score_sums(p)))
    # To first order in 1/N the entropy is (C - 1) / 2N too low.
    assert np.mean(plain) < classes - 1 and abs(np.mean(found) - classes) < 0.7


def test_infinity_refuses():
    with pytest.raises(UsageError, match="generated features: got '5 images'; allowed: 6 or more"):
        fd_infinity(moments(X), Y[:5])
    with pytest.raises(UsageError, match="sizes: .* allowed: 1 to 64"):
        fd_infinity(moments(X), Y, sizes=[10, 65])
    with pytest.raises(UsageError, match="sum to 1"):
        inception_score_infinity(X)


# --- class by class


def test_classwise_distance_sees_what_the_whole_set_hides():
    chance = np.random.default_rng(5)
    x = chance.normal(size=(400, 3))
    labels = np.repeat([0, 1], 200)
    x[labels == 1] += 4
    swapped = 1 - labels
    same = classwise_frechet(class_moments(x, labels), class_moments(x, labels))
    wrong = classwise_frechet(class_moments(x, labels), class_moments(x, swapped))
    assert same.mean == pytest.approx(0, abs=1e-9)
    # Samples whose labels are swapped are the same set.
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-9)
    assert wrong.values[0] == pytest.approx(
        frechet_distance(moments(x[:200]), moments(x[200:])), rel=1e-12
    )
    assert wrong.mean == pytest.approx(np.mean(list(wrong.values.values()))) and wrong.mean > 40


def test_classwise_refuses():
    labels = np.repeat([0, 3], [60, 4])
    with pytest.raises(UsageError, match="generated features of class 3: got '4 images'"):
        classwise_frechet(class_moments(X, np.repeat([0, 3], 32)), class_moments(Y, labels))
    with pytest.raises(UsageError, match=r"classes \[3\] on one side only"):
        classwise_frechet(class_moments(X, labels * 0), class_moments(Y, labels))
    with pytest.raises(UsageError, match=r"labels: got \(63,\)"):
        class_moments(X, labels[1:])


# --- bad features


def test_features_are_tables_of_finite_numbers():
    broken = X.copy()
    broken[3, 1] = np.nan
    with pytest.raises(UsageError, match="features: got '1 rows with values that are not finite'"):
        spectrum(broken)
    with pytest.raises(UsageError, match=r"generated features: got \(64, 3\).*\[N, 4\]"):
        authenticity(X, Y[:, :3])
    with pytest.raises(UsageError, match=r"features: got \(64,\)"):
        spectrum(X[:, 0])
    with pytest.raises(UsageError, match=r"b: got \(2, 4\); allowed: a shape \[N, d\] with N >= 3"):
        tables(("a", X), ("b", Y[:2]), least=3)
    with pytest.raises(UsageError, match="no distributions"):
        distributions("probabilities", np.full((2, 3), 0.5))
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        spectrum(X, kernel="cosin")
    with pytest.raises(UsageError, match="vendi sigma"):
        spectrum(X, kernel="rbf")
    with pytest.raises(UsageError, match="1 rows of zeros"):
        spectrum(np.eye(3)[:, :2])
    with pytest.raises(UsageError, match="vendi order: got -1"):
        vendi_score(spectrum(X), order=-1)


# --- data copying


@pytest.mark.parametrize("digits", [9, 1])
def test_rank_statistic_is_scipys_with_and_without_ties(digits):
    x, y = np.round(X[:, 0], digits), np.round(X[:50, 1] + 0.1, digits)
    theirs = scipy.stats.mannwhitneyu(x, y, method="asymptotic", use_continuity=False)
    found = rank_statistic(x, y)
    assert 2 * scipy.stats.norm.sf(abs(found)) == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found == pytest.approx(-rank_statistic(y, x)) and found < 0
    assert rank_statistic(np.ones(5), np.ones(7)) == 0.0
    assert rank_statistic(np.exp(x), np.exp(y)) == found


def test_copying_statistic_is_a_mean_over_cells():
    chance = np.random.default_rng(7)
    centres = np.array([[0.0, 0], [60, 0], [0, 60]])
    shares = np.array([0.5, 0.3, 0.2])
    train, fresh, made = (
        centres[chance.permutation(np.repeat(range(3), (600 * shares).astype(int)))]
        + chance.normal(size=(600, 2))
        for _ in range(3)
    )
    # A cell that is copied, one of fresh draws, one that is underfitted.
    cell = [abs(made - centre).max(1) < 30 for centre in centres]
    train_cell = [abs(train - centre).max(1) < 30 for centre in centres]
    made[cell[0]] = train[train_cell[0]]
    made[cell[2]] += 10
    zs = [
        rank_statistic(
            _nearest(made[inside], train[own]),
            _nearest(fresh[abs(fresh - c).max(1) < 30], train[own]),
        )
        for inside, own, c in zip(cell, train_cell, centres, strict=True)
    ]
    assert zs[0] < -10 and abs(zs[1]) < 4 and zs[2] > 10
    assert copying_statistic(train, fresh, made) == pytest.approx(zs @ shares)
    # A cell without samples enough is left out.
    few = np.concatenate([made[cell[0]], made[cell[1]], made[cell[2]][:19]])
    expected = (zs[0] * 0.5 + zs[1] * 0.3) / 0.8
    assert copying_statistic(train, fresh, few) == pytest.approx(expected)


def _nearest(x, y):
    return NearestNeighbors(n_neighbors=1).fit(y).kneighbors(x)[0][:, 0]


def test_copied_share_is_the_share_of_copies():
    chance = np.random.default_rng(8)
    train, fresh = chance.normal(size=(100, 2)), chance.normal(size=(1500, 2))
    made = chance.normal(size=(3000, 2))
    assert copied_share(train, fresh, made, dimension=2) < 0.005
    copies = chance.random(3000) < 0.4
    for noise in (0.0, 1e-3):
        mixed = np.where(copies[:, None], train[chance.integers(0, 100, 3000)], made)
        mixed = mixed + noise * chance.normal(size=mixed.shape)
        # Six copies of each point in each half: e^-6 of them are alone.
        found = copied_share(train, fresh, mixed, dimension=2)
        assert found == pytest.approx(copies.mean(), abs=0.02)
    # Rarer than the ratio asks for: a fifth of p-mass 1/100 each is no copying at 20 times.
    wide = train[chance.integers(0, 100, 3000)] + chance.normal(size=(3000, 2))
    assert copied_share(train, fresh, wide, dimension=2) < 0.005


def test_copying_does_not_depend_on_rotation():
    assert copying_statistic(X, CLOUD, Y, least=5) == pytest.approx(
        copying_statistic(X @ TURN, CLOUD @ TURN, Y @ TURN, least=5)
    )
    mixed = np.concatenate([X, CLOUD, X])
    found = copied_share(X, CLOUD, mixed, dimension=3, mass=0.01)
    turned = copied_share(X @ TURN, CLOUD @ TURN, mixed @ TURN, dimension=3, mass=0.01)
    assert found == turned > 0.1


def test_copying_refuses():
    with pytest.raises(UsageError, match="copying cells: got 65; allowed: 1 to 64"):
        copying_statistic(X, Y, Y, cells=65)
    with pytest.raises(UsageError, match="every cell holds fresh images"):
        copying_statistic(np.concatenate([X, X + 90]), X, Y, cells=2)
    with pytest.raises(UsageError, match="generated features: got 15; allowed: 20 or more"):
        copying_statistic(X, CLOUD, Y[:15], cells=1)
    with pytest.raises(UsageError, match="copying neighbours: got 50; allowed: 1 to 40"):
        copied_share(X, Y[:40], Y, dimension=2)
    with pytest.raises(UsageError, match="4 or more"):
        copied_share(X, Y, Y[:3], dimension=2)
    with pytest.raises(UsageError, match="copying dimension"):
        copied_share(X, Y, Y, dimension=0)


# --- likelihood divergence


def test_one_centre_amid_a_sphere_is_a_gaussian_of_its_radius():
    train = 3 * CLOUD / np.linalg.norm(CLOUD, axis=1, keepdims=True) + 1
    found = fit(np.ones((1, 4)), train)
    assert found.variances[0] == pytest.approx(9 / 4)
    law = scipy.stats.multivariate_normal(np.ones(4), 9 / 4 * np.eye(4))
    assert mean_log_likelihood(found, Y) == pytest.approx(law.logpdf(Y).mean())


def test_variances_are_the_most_likely_ones_around():
    centres, train = CLOUD[:6], CLOUD[40:]
    d = train.shape[1]
    apart = scipy.spatial.distance.cdist(train, centres) ** 2
    middle = scipy.stats.multivariate_normal(train.mean(0), train.var(0).mean() * np.eye(d))

    def loss(logs):
        parts = scipy.stats.norm.logpdf(0, scale=np.exp(logs / 2)) * d - apart / np.exp(logs) / 2
        return -np.log(np.exp(parts).mean(1) + middle.pdf(train)).mean()

    found = np.log(fit(centres, train, iterations=3000, tolerance=0.0).variances)
    best = scipy.optimize.minimize(loss, found, tol=1e-9)
    assert loss(found) == pytest.approx(best.fun, abs=1e-9)
    np.testing.assert_allclose(found, best.x, atol=1e-3)
    # And it has come a way: one step from the start is worse.
    assert loss(np.log(fit(centres, train, iterations=1).variances)) > best.fun + 1e-4


def test_likelihood_divergence_tells_fresh_samples_from_bad_ones_and_from_copies():
    chance = np.random.default_rng(9)
    train, test, made = chance.normal(size=(3, 300, 3)) * [1, 2, 5] + 7
    fresh = likelihood_divergence(train, test, made)
    assert abs(fresh) < 6
    assert likelihood_divergence(train, test, made + 3) > 20
    noisy = train + 0.05 * chance.normal(size=train.shape)
    assert likelihood_divergence(train, test, noisy) > 20
    assert likelihood_divergence(train, test, train) > 1e4
    # Units of single features do not matter, nor the order of the samples.
    other = likelihood_divergence(9 * train, 9 * test, 9 * made[::-1])
    assert other == pytest.approx(fresh, rel=1e-6)


def test_likelihood_divergence_refuses():
    flat = np.concatenate([X, np.ones((64, 1))], 1)
    with pytest.raises(UsageError, match="test features: got '1 constant columns'"):
        likelihood_divergence(flat, flat, flat)
    with pytest.raises(UsageError, match=r"generated features: got \(1, 4\).*N >= 2"):
        likelihood_divergence(X, X, Y[:1])


# --- MAUVE

P = np.array([0.5, 0.25, 0.2, 0.05, 0.0, 0.0])
Q = np.array([0.1, 0.4, 0.1, 0.0, 0.3, 0.1])


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_mauve_of_equal_and_of_disjoint_histograms(scale):
    assert mauve(P, P, scale=scale) == pytest.approx(1, abs=1e-12)
    disjoint = mauve([0.3, 0.7, 0, 0], [0, 0, 0.9, 0.1], scale=scale)
    assert disjoint == pytest.approx(1 / scipy.special.comb(2 * scale, scale), rel=1e-9)
    assert frontier_integral(P, P) == 0.0
    assert frontier_integral([0.3, 0.7, 0], [0, 0, 1.0]) == pytest.approx(1)


def test_mauve_is_symmetric_and_rises_along_a_mixture():
    assert mauve(P, Q) == pytest.approx(mauve(Q, P), rel=1e-9)
    assert frontier_integral(P, Q) == pytest.approx(frontier_integral(Q, P))
    path = [(1 - w) * Q + w * P for w in np.linspace(0, 1, 9)]
    assert (np.diff([mauve(P, step) for step in path]) > 0).all()
    assert (np.diff([frontier_integral(P, step) for step in path]) < 0).all()


def test_frontier_integral_is_its_integral():
    def both(w):
        r = w * P + (1 - w) * Q
        return w * scipy.stats.entropy(P, r) + (1 - w) * scipy.stats.entropy(Q, r)

    expected = 2 * scipy.integrate.quad(both, 0, 1, epsabs=1e-12)[0]
    assert frontier_integral(P, Q) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parity
def test_mauve_agrees_with_its_authors(monkeypatch):
    # The histograms need another library; the rest does not.
    monkeypatch.setitem(sys.modules, "faiss", types.ModuleType("faiss"))
    theirs = pytest.importorskip("mauve.compute_mauve")
    assert frontier_integral(P, Q) == pytest.approx(theirs.get_fronter_integral(P, Q), rel=1e-9)
    weights = np.linspace(1e-6, 1 - 1e-6, 20_001)
    curve = theirs.get_divergence_curve_for_multinomials(P, Q, weights, 5)
    np.testing.assert_allclose(frontier(P, Q, weights), curve[1:-1], rtol=1e-9)
    x, y = curve.T
    assert mauve(P, Q) == pytest.approx(-np.trapezoid(y, x), rel=1e-6)
    # Their 25 points.
    x, y = theirs.get_divergence_curve_for_multinomials(P, Q, weights[::833], 5).T
    assert mauve(P, Q) == pytest.approx(-np.trapezoid(y, x), abs=0.003)


def test_histograms_count_what_falls_into_each_cell():
    chance = np.random.default_rng(10)
    places = 10 * np.eye(4)[[0, 0, 0, 1, 2, 2, 3, 3, 3, 3]]
    x = np.repeat(places, 20, axis=0) + 0.1 * chance.normal(size=(200, 4))
    y = np.repeat(places[:5], 40, axis=0) + 0.1 * chance.normal(size=(200, 4))
    p, q = histograms(x, y, cells=4)
    order = np.lexsort((q, p))
    np.testing.assert_allclose(p[order], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(q[order], [0.2, 0.2, 0.6, 0.0])
    p, q = histograms(x, y, cells=4, smoothing=0.5)
    np.testing.assert_allclose(np.sort(p), (np.array([20, 40, 60, 80]) + 0.5) / 202)
    assert len(histograms(X, Y)[0]) == 6
    # Lengths do not matter.
    longer = histograms(3 * x, 5 * y, cells=4)
    np.testing.assert_allclose(np.sort(longer[0]), [0.1, 0.2, 0.3, 0.4])
    equal = histograms(np.ones((5, 2)), np.ones((6, 2)))
    assert mauve(*equal) == pytest.approx(1)


def test_mauve_refuses():
    with pytest.raises(UsageError, match="mauve cells: got 129; allowed: 1 to 128"):
        histograms(X, Y, cells=129)
    with pytest.raises(UsageError, match="mauve smoothing"):
        histograms(X, Y, smoothing=-1)
    with pytest.raises(UsageError, match="histograms"):
        mauve(P, Q[:-1])
    with pytest.raises(UsageError, match="sum to 1"):
        frontier_integral(P, 2 * Q)
    with pytest.raises(UsageError, match="mauve scale"):
        mauve(P, Q, scale=0)


# --- label information, fronts, budgets


def test_label_information_is_the_log_of_the_inception_score():
    p = np.exp(3 * X) / np.exp(3 * X).sum(1, keepdims=True)
    sums = score_sums(p)
    found = entropies(sums)
    assert found.marginal == pytest.approx(scipy.stats.entropy(p.mean(0)))
    assert found.conditional == pytest.approx(scipy.stats.entropy(p, axis=1).mean())
    assert label_information(sums) == pytest.approx(np.log(inception_score(sums)), abs=1e-12)
    assert entropies(score_sums(np.eye(5))) == pytest.approx((np.log(5), 0.0))
    with pytest.raises(UsageError, match="0 images"):
        entropies(score_sums(np.zeros((0, 3))))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_front_is_what_nothing_dominates(k):
    # Rounded, so that there are ties and equal settings.
    scores = np.round(np.random.default_rng(k).normal(size=(120, k)), 1)
    better = ["higher", "lower", "higher"][:k]
    upward = scores * np.array([1, -1, 1])[:k]
    beaten = [
        any((other >= own).all() and (other > own).any() for other in upward) for own in upward
    ]
    np.testing.assert_array_equal(front(scores, better), ~np.array(beaten))
    doubled = front(np.concatenate([scores, scores]), better)
    np.testing.assert_array_equal(doubled[:120], doubled[120:])


def test_the_front_refuses():
    with pytest.raises(UsageError, match="better: .* allowed: 4 of 'higher' and 'lower'"):
        front(X, ["higher", "lower"])
    with pytest.raises(UsageError, match="not finite"):
        front(np.array([[np.nan, 1]]), ["higher", "lower"])


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_expected_best_is_the_mean_over_all_subsets(better):
    results = np.random.default_rng(3).normal(size=7)
    best = min if better == "lower" else max
    found = expected_best(results, range(1, 8), better=better)
    for n in range(1, 8):
        every = [best(part) for part in itertools.combinations(results, n)]
        assert found.mean[n - 1] == pytest.approx(np.mean(every))
        assert found.deviation[n - 1] == pytest.approx(np.std(every))


def test_expected_best_of_uniform_runs_is_their_order_statistic():
    # E min of n uniform numbers is 1 / (n + 1); a pool estimates it without bias.
    pools = np.random.default_rng(4).random((400, 50))
    found = np.array([expected_best(pool, [1, 4, 20]).mean for pool in pools])
    error = found.std(0) / np.sqrt(400)
    assert (abs(found.mean(0) - 1 / np.array([2, 5, 21])) < 4 * error).all()
    grid = expected_best(np.arange(1, 5001), [3], better="higher")
    assert grid.mean[0] == pytest.approx(3 / 4 * 5001)


def test_f_scores_agree_with_scikit_learn_and_budgets_refuse():
    truth, said = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([1, 1, 1, 0, 1, 0, 0])
    for beta in (0.5, 1.0, 8.0):
        theirs = sklearn.metrics.fbeta_score(truth, said, beta=beta)
        found = f_score(
            sklearn.metrics.precision_score(truth, said),
            sklearn.metrics.recall_score(truth, said),
            beta=beta,
        )
        assert found == pytest.approx(theirs)
    assert f_score(0.6, 0.9, beta=2) != pytest.approx(f_score(0.9, 0.6, beta=2))
    assert f_score(0.0, 0.0) == 0.0
    with pytest.raises(UsageError, match="precision, recall, beta"):
        f_score(1.2, 0.5)
    with pytest.raises(UsageError, match=r"counts: got \[8\]; allowed: 1 to 7"):
        expected_best(truth, [8])
    with pytest.raises(UsageError, match="better: got 'best'"):
        expected_best(truth, [1], better="best")
