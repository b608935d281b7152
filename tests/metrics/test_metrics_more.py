"""Laws of the scores beside the main ones: closed forms, invariances, and others' libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.spatial.distance
import scipy.special
import scipy.stats
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from jaxgen.errors import UsageError
from jaxgen.metrics.scores.asymmetry import (
    complement_precision,
    complement_recall,
    symmetric_precision,
    symmetric_recall,
)
from jaxgen.metrics.scores.authenticity import authentic, authenticity
from jaxgen.metrics.scores.classwise import class_moments, classwise_frechet
from jaxgen.metrics.scores.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.scores.inception_score import inception_score, score_sums
from jaxgen.metrics.scores.infinity import extrapolate, fd_infinity, inception_score_infinity
from jaxgen.metrics.scores.manifold import coverage, manifold, precision, recall
from jaxgen.metrics.scores.realism import pruned, realism
from jaxgen.metrics.scores.sliced import (
    directions,
    projections,
    sliced_wasserstein,
    wasserstein_powers,
)
from jaxgen.metrics.scores.vendi import spectrum, vendi_score
from jaxgen.metrics.sets.inputs import distributions, tables

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
    # At 1 +- 1e-9 a rounding of 2e-16 is divided by 1e-9.
    assert (np.diff(found) <= 1e-6 * found[3]).all() and found[0] > 2 * found[-1]
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
def test_sliced_distance_agrees_with_pot(p, monkeypatch):
    for backend in ("PYTORCH", "JAX", "TENSORFLOW", "CUPY"):
        monkeypatch.setenv(f"POT_BACKEND_DISABLE_{backend}", "1")
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
