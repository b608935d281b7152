"""Laws of the scores of copying, likelihood, frontiers and budgets."""

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
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from jaxgen.errors import UsageError
from jaxgen.metrics.scores.budget import expected_best, f_score
from jaxgen.metrics.scores.copying import copied_share, copying_statistic, rank_statistic
from jaxgen.metrics.scores.inception_score import (
    entropies,
    inception_score,
    label_information,
    score_sums,
)
from jaxgen.metrics.scores.likelihood_divergence import (
    fit_mixture,
    likelihood_divergence,
    mean_log_likelihood,
)
from jaxgen.metrics.scores.mauve import frontier, frontier_integral, histograms, mauve
from jaxgen.metrics.scores.pareto import front

ROWS, COLUMNS = np.arange(1, 65)[:, None], np.arange(1, 5)[None]
X = np.sin(0.37 * ROWS * COLUMNS)
Y = 0.5 + 1.3 * np.cos(0.23 * ROWS * (COLUMNS + 1))
TURN = scipy.stats.ortho_group.rvs(4, random_state=1)
CHANCE = np.random.default_rng(0)
CLOUD = CHANCE.normal(size=(100, 4))


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

    def draw(counts):
        return np.repeat(centres, counts, axis=0) + chance.normal(size=(sum(counts), 2))

    train, fresh, made = draw([200, 200, 200]), draw([300, 180, 120]), draw([200, 300, 100])
    # A cell that is copied, one of fresh draws, one that is underfitted.
    made[:200] = train[:200]
    made[500:] += 10
    parts = [(slice(0, 200), slice(0, 300), slice(0, 200))]
    parts += [(slice(200, 400), slice(300, 480), slice(200, 500))]
    parts += [(slice(400, 600), slice(480, 600), slice(500, 600))]
    zs = [
        rank_statistic(_nearest(made[m], train[t]), _nearest(fresh[f], train[t]))
        for t, f, m in parts
    ]
    assert zs[0] < -10 and abs(zs[1]) < 4 and zs[2] > 10
    shares = np.array([0.5, 0.3, 0.2])
    assert copying_statistic(train, fresh, made) == pytest.approx(zs @ shares)
    # A cell with too few samples is left out.
    expected = zs[:2] @ shares[:2] / 0.8
    assert copying_statistic(train, fresh, made[:519]) == pytest.approx(expected)


def test_copying_statistic_keeps_to_the_training_points_of_a_cell():
    # Neighbouring cells, where the nearest training point may be across the border.
    train, fresh, made = CHANCE.random((3, 200, 2))
    means = KMeans(3, n_init=10, random_state=0).fit(train)
    cells = [(means.predict(part)) for part in (train, fresh, made)]
    zs, shares, crossed = [], [], 0
    for cell in range(3):
        t, f, m = (part[own == cell] for part, own in zip((train, fresh, made), cells, strict=True))
        zs.append(rank_statistic(_nearest(m, t), _nearest(f, t)))
        shares.append(len(f) / 200)
        crossed += int((_nearest(m, t) > _nearest(m, train)).sum())
    assert crossed > 5
    assert copying_statistic(train, fresh, made) == pytest.approx(np.dot(zs, shares), rel=1e-12)


def _nearest(x, y):
    return NearestNeighbors(n_neighbors=1).fit(y).kneighbors(x)[0][:, 0]


def test_copied_share_is_the_share_of_copies():
    chance = np.random.default_rng(8)
    train, fresh = chance.normal(size=(100, 2)), chance.normal(size=(1500, 2))
    made = chance.normal(size=(3000, 2))
    assert copied_share(train, fresh, made) < 0.005
    copies = chance.random(3000) < 0.4
    for noise in (0.0, 1e-3):
        mixed = np.where(copies[:, None], train[chance.integers(0, 100, 3000)], made)
        mixed = mixed + noise * chance.normal(size=mixed.shape)
        # Six copies of each point in each half: e^-6 of them are alone.
        for dimension in (None, 2):
            found = copied_share(train, fresh, mixed, dimension=dimension)
            assert found == pytest.approx(copies.mean(), abs=0.02)
        # Each half is counted by the other's balls, so which is which does not matter.
        swapped = mixed.reshape(-1, 2, 2)[:, ::-1].reshape(-1, 2)
        assert copied_share(train, fresh, swapped, dimension=2) == found
    # Rarer than the ratio asks for: a fifth of p-mass 1/100 each is no copying at 20 times.
    wide = train[chance.integers(0, 100, 3000)] + chance.normal(size=(3000, 2))
    assert copied_share(train, fresh, wide) < 0.005


def test_copied_share_finds_the_dimension_of_the_data():
    # Three dimensions in twenty: the features' own would call a quarter of fresh samples copies.
    chance = np.random.default_rng(11)
    into = chance.normal(size=(3, 20))
    train, fresh, made = (chance.normal(size=(n, 3)) @ into for n in (100, 1500, 2000))
    assert copied_share(train, fresh, made) < 0.005
    assert copied_share(train, fresh, made, dimension=20) > 0.1
    mixed = np.concatenate([np.repeat(train, 20, axis=0), made])
    mixed = mixed[chance.permutation(4000)] + 1e-4 * chance.normal(size=(4000, 20))
    assert copied_share(train, fresh, mixed) == pytest.approx(0.5, abs=0.02)


def test_a_crowd_is_no_copy_unless_it_is_as_rare_as_mass_says():
    chance = np.random.default_rng(12)
    train, fresh = chance.random((60, 2)), chance.random((2000, 2))
    train[0] = 0.5
    # All samples on a hundredth of the square, which is 100 times as dense there.
    made = 0.5 + 0.1 * (chance.random((2000, 2)) - 0.5)
    assert copied_share(train, fresh, made, mass=0.04) > 0.95
    # Balls of p-mass 1 / 2000 hold a twentieth of it each.
    assert copied_share(train, fresh, made, mass=1 / 2000) < 0.05 * 5
    assert copied_share(train, fresh, made, mass=0.04, ratio=150) < 0.1


@pytest.mark.parametrize("d", [1, 3])
def test_balls_reach_to_where_the_data_hold_their_mass(d):
    # A cube of volume 1, and balls far smaller than its 4000 fresh points can count.
    chance = np.random.default_rng(13)
    centre, fresh, mass = np.full((1, d), 0.5), chance.random((4000, d)), 1e-4
    radius = {1: mass / 2, 3: (mass * 3 / (4 * np.pi)) ** (1 / 3)}[d]
    for factor, expected in ((0.75, 1.0), (1.3, 0.0)):
        made = np.repeat(centre, 40, axis=0)
        made[::2, 0] += factor * radius
        found = copied_share(centre, fresh, made, dimension=d, mass=mass, neighbours=200)
        assert found == expected


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
    with pytest.raises(UsageError, match="copying neighbours: got 50; allowed: 3 to 40"):
        copied_share(X, Y[:40], Y, dimension=2)
    with pytest.raises(UsageError, match="4 or more"):
        copied_share(X, Y, Y[:3], dimension=2)
    with pytest.raises(UsageError, match="copying dimension"):
        copied_share(X, Y, Y, dimension=0)


# --- likelihood divergence


def test_one_centre_amid_a_sphere_is_a_gaussian_of_its_radius():
    train = 3 * CLOUD / np.linalg.norm(CLOUD, axis=1, keepdims=True) + 1
    found = fit_mixture(np.ones((1, 4)), train)
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

    found = np.log(fit_mixture(centres, train, iterations=3000, tolerance=0.0).variances)
    best = scipy.optimize.minimize(loss, found, tol=1e-9)
    assert loss(found) == pytest.approx(best.fun, abs=1e-9)
    np.testing.assert_allclose(found, best.x, atol=1e-3)
    # And it has come a way: one step from the start is worse.
    assert loss(np.log(fit_mixture(centres, train, iterations=1).variances)) > best.fun + 1e-4


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
    # Its histograms and its encoders need other libraries; the rest does not.
    monkeypatch.setitem(sys.modules, "faiss", types.ModuleType("faiss"))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
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
    longer = histograms(x * chance.uniform(1, 50, (200, 1)), 5 * y, cells=4)
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
    truth, said = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 1, 0, 0])
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
