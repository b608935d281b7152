"""Bandits over generators: their bounds hold, their regressions are exact, bad input is said."""

from __future__ import annotations

import types
from functools import partial

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

from jaxgen.errors import UsageError
from jaxgen.metrics.scores.frechet import Moments, gaussian_distance, moments
from jaxgen.metrics.scores.inception_score import inception_score, score_sums
from jaxgen.selection import (
    asymptotic_bound,
    choose,
    fourier_ridge,
    kernel_ridge,
    of_model,
    select,
    select_by_inception_score,
)
from jaxgen.selection.fid_ucb import _add_predictions, frechet_bound, inception_bound
from jaxgen.selection.pak_ucb import gaussian_kernel

COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.4]])
SHIFT = np.array([0.6, -0.2, 0.3])
REFERENCE = Moments(1_000_001, np.zeros(3), np.diag([1.0, 2.0, 0.5]) * 1_000_000)


@pytest.mark.parametrize("size", [2, 10, 100, 1000])
def test_the_frechet_bound_is_below_the_true_distance(size):
    """In nearly all of 200 draws; at delta 0.05, three standard errors below 0.95 is 0.9."""
    true = gaussian_distance(SHIFT, COVARIANCE, REFERENCE.mean, REFERENCE.covariance)
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal(SHIFT, COVARIANCE, (200, size))
    bounds = [frechet_bound(REFERENCE, moments(features)) for features in drawn]
    assert np.mean([bound.optimistic <= true for bound in bounds]) >= 0.9
    assert all(bound.optimistic < bound.estimate for bound in bounds)
    expected = gaussian_distance(
        drawn[0].mean(0), np.cov(drawn[0].T), REFERENCE.mean, REFERENCE.covariance
    )
    assert bounds[0].estimate == pytest.approx(expected, rel=1e-9)


def test_the_frechet_bound_closes_as_one_over_the_root_of_the_images():
    """The covariances have full rank, so the cross term's bound is linear in D."""
    rng = np.random.default_rng(1)
    gaps = []
    for size in (10_000, 160_000):
        found = frechet_bound(REFERENCE, moments(rng.multivariate_normal(SHIFT, COVARIANCE, size)))
        gaps.append(found.estimate - found.optimistic)
    assert np.log(gaps[0] / gaps[1]) / np.log(16) == pytest.approx(0.5, abs=0.05)


def test_the_frechet_bound_is_never_looser_than_the_papers_cross_term():
    """2 sqrt(D) tr R^1/2 beside what the root says at the sample's S + D."""
    found = moments(np.random.default_rng(2).multivariate_normal(SHIFT, COVARIANCE, 50))
    given = (REFERENCE.mean, REFERENCE.covariance)
    for apart in (1e-3, 0.1, 3.0):
        wide = found.covariance + apart * np.eye(3)
        here = gaussian_distance(REFERENCE.mean, found.covariance, *given)
        there = gaussian_distance(REFERENCE.mean, wide, *given) - 3 * apart
        ours = here - there
        theirs = 2 * np.sqrt(apart) * np.sqrt(np.diag(REFERENCE.covariance)).sum()
        assert 0 < ours <= theirs


# With equal means only the covariances' error is left.
@pytest.mark.parametrize("shift", [SHIFT, np.zeros(3)], ids=["apart", "equal means"])
def test_the_asymptotic_bound_s_bias_and_error_are_those_of_repeated_draws(shift):
    """Over 4,000 sets of 300 images: the bias within 4 standard errors, the spread in 4 of its own.

    A deviation over n sets is known to 1 / sqrt(2 n), 1.1 %.
    """
    wide = np.array([[0.5, 0.6, 0.0], [0.6, 3.0, 0.4], [0.0, 0.4, 0.2]])
    true = gaussian_distance(shift, wide, REFERENCE.mean, REFERENCE.covariance)
    drawn = np.random.default_rng(6).multivariate_normal(shift, wide, (4000, 300))
    sets = [moments(features) for features in drawn]
    delta = np.exp(-0.5)  # one standard error
    bounds = [asymptotic_bound(REFERENCE, each, delta=delta) for each in sets]
    sure = [asymptotic_bound(REFERENCE, each, delta=1 - 1e-15) for each in sets]
    estimates = np.array([bound.estimate for bound in bounds])
    centred = np.array([bound.optimistic for bound in sure])
    error = estimates.std() / np.sqrt(len(sets))
    assert abs(centred.mean() - true) < 4 * error < abs(estimates.mean() - true)
    errors = centred - np.array([bound.optimistic for bound in bounds])
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.045)
    # For S = R = 1 the covariances' bias is d (d + 1) / (4 n), and the means' d / n.
    same = Moments(100, np.zeros(5), 99 * np.eye(5))
    found = asymptotic_bound(same, same, delta=delta)
    assert found.estimate - found.optimistic == pytest.approx((5 + 7.5) / 100, rel=1e-9)


def test_many_features_want_the_asymptotic_bound():
    """40 features, 3 arms that differ little: the paper's bound is wide as yet, this is not."""
    reference = np.random.default_rng(7).normal(0, 1, (20_000, 40))

    def wide(mean):
        return lambda seed, count: np.random.default_rng(seed).normal(mean, 1, (count, 40))

    arms = [wide(0.3), wide(0.05), wide(0.2)]
    found = select(arms, reference, 100, batch=32, bound=asymptotic_bound)
    assert found.best == 1 and found.shares[1] > 0.8
    assert select(arms, reference, 100, batch=32).shares[1] < 0.6


def test_the_inception_bound_holds_and_its_estimate_is_the_score():
    rng = np.random.default_rng(3)
    often, single = np.array([0.5, 0.2, 0.2, 0.1]), 0.7 * np.eye(4) + 0.075
    mean = often @ single
    true = (single[0] * np.log(single[0])).sum() - (mean * np.log(mean)).sum()
    held = []
    for size in (4, 30, 300):
        for _ in range(60):
            predictions = single[rng.choice(4, size, p=often)]
            bound = inception_bound(_add_predictions(None, predictions))
            held.append(bound.optimistic <= -true)
            expected = np.log(inception_score(score_sums(predictions)))
            assert -bound.estimate == pytest.approx(expected, abs=1e-9)
    assert np.mean(held) >= 0.9
    # Parts merged as one.
    parts = _add_predictions(_add_predictions(None, predictions[:7]), predictions[7:])
    assert inception_bound(parts).optimistic == pytest.approx(bound.optimistic, abs=1e-9)


def arm(mean: float):
    return lambda seed, count: np.random.default_rng(seed).normal(mean, 1, (count, 2))


def test_every_arm_is_asked_and_the_same_seed_asks_the_same():
    reference = np.random.default_rng(0).normal(0, 1, (5000, 2))
    arms = [arm(m) for m in (3.0, 0.1, -2.0)]
    found = select(arms, reference, 40, batch=8)
    assert set(found.pulls[:3]) == {0, 1, 2} and found.best == 1
    assert found.images.tolist() == (np.bincount(found.pulls, minlength=3) * 8).tolist()
    assert found.shares.sum() == pytest.approx(1)
    again = select(arms, reference, 40, batch=8)
    np.testing.assert_array_equal(found.pulls, again.pulls)
    np.testing.assert_array_equal(found.estimates, again.estimates)
    seeds = []
    select([lambda s, n: seeds.append(s) or np.eye(2)[[0, 1] * 4] + s], reference, 20, batch=8)
    assert len(set(seeds)) == 20


def test_a_model_is_a_generator_of_the_features_of_its_bytes():
    asked = []

    def sample(labels, *, seed, **options):
        asked.append((tuple(labels), seed, options))
        return types.SimpleNamespace(images=np.full((len(labels), 2, 2, 1), 0.5, np.float32))

    spec = types.SimpleNamespace(num_classes=7)
    model = types.SimpleNamespace(sample=sample, setup=types.SimpleNamespace(spec=spec))
    extractor = types.SimpleNamespace(features=lambda images: images.reshape(len(images), -1))
    generate = of_model(model, extractor, guidance=2.0)
    features = generate(5, 40)
    # 127.5 * 1.5 + 0.5, rounded down.
    np.testing.assert_array_equal(features, np.full((40, 4), 191.0))
    labels, seed, options = asked[0]
    assert seed == 5 and options == {"guidance": 2.0} and len(set(labels)) > 3
    of_model(model, extractor, labels=[2])(1, 9)
    assert asked[1][0] == (2,) * 9


def test_kernel_ridge_is_scikit_learns_and_its_width_a_gaussian_process_s():
    rng = np.random.default_rng(4)
    x, new = rng.uniform(-1, 1, (40, 3)), rng.uniform(-1, 1, (9, 3))
    y = np.sin(x.sum(1)) + 0.1 * rng.normal(size=40)
    alpha, length = 0.3, 0.6
    ours = kernel_ridge(3, gaussian_kernel(length), alpha)
    state = ours.init()
    for context, score in zip(x, y, strict=True):
        state = ours.add(state, context, score)
    found = np.array([ours.predict(state, context) for context in new])
    ridge = KernelRidge(alpha=alpha, kernel="rbf", gamma=1 / (2 * length**2)).fit(x, y)
    np.testing.assert_allclose(found[:, 0], ridge.predict(new), rtol=1e-8)
    process = GaussianProcessRegressor(RBF(length), alpha=alpha, optimizer=None).fit(x, y)
    _, deviation = process.predict(new, return_std=True)
    # A process's deviation for noise of variance alpha, in units of that noise.
    np.testing.assert_allclose(found[:, 1], deviation / np.sqrt(alpha), rtol=1e-6)
    # Before anything was seen: the prior.
    assert ours.predict(ours.init(), new[0]) == (0.0, pytest.approx(1 / np.sqrt(alpha)))


def test_rank_one_updates_are_the_direct_solution():
    rng = np.random.default_rng(5)
    x, y, alpha = rng.uniform(-1, 1, (30, 2)), rng.normal(size=30), 0.2
    ours = fourier_ridge(2, 20, 0.7, alpha, seed=3)
    state = ours.init()
    for context, score in zip(x, y, strict=True):
        state = ours.add(state, context, score)
    waves = np.random.default_rng(3).normal(0, 1 / 0.7, (10, 2))
    phi = np.concatenate([np.cos(x @ waves.T), np.sin(x @ waves.T)], 1) / np.sqrt(10)
    np.testing.assert_allclose((phi**2).sum(1), 1)
    matrix = phi.T @ phi + alpha * np.eye(20)
    mean, width = ours.predict(state, x[0])
    assert mean == pytest.approx(phi[0] @ np.linalg.solve(matrix, phi.T @ y), rel=1e-9)
    assert width == pytest.approx(np.sqrt(phi[0] @ np.linalg.solve(matrix, phi[0])), rel=1e-9)


def test_optimism_is_worth_eta_widths():
    """Arm 1 was better at first; with no optimism nobody asks arm 0 again, with much all do."""
    contexts = np.zeros((30, 1))
    arms = [lambda seed, x: 0.5, lambda seed, x: 0.6]
    ridge = kernel_ridge(1, gaussian_kernel(1.0))
    assert choose(arms, contexts, ridge, eta=0.0).arms[2:].tolist() == [1] * 28
    assert np.bincount(choose(arms, contexts, ridge, eta=50.0).arms).min() >= 13


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: select([], r, 5), "generators: got '0 of them'"),
        (lambda r: select([arm(0)] * 3, r, 2), "rounds: got 2; allowed: 3 or more"),
        (lambda r: select([arm(0)], r, 5, batch=1), "batch: got 1"),
        (lambda r: select([arm(0)], r[:1], 5), "reference_features: got '1 images'"),
        (lambda r: select([arm(0)], r[0], 5), "reference_features: got \\(2,\\)"),
        (lambda r: select([arm(np.nan)], r, 5), "generators\\[0\\]: .*not finite"),
        (lambda r: select([lambda s, n: np.ones((n, 3))], r, 5), "features \\[16, 2\\]"),
        (lambda r: select([lambda s, n: np.ones((n - 1, 2))], r, 5), "features \\[16, d\\]"),
        (
            lambda r: select([arm(0)], r, 5, bound=partial(frechet_bound, delta=0.0)),
            "delta: got 0.0",
        ),
        (
            lambda r: select([arm(0)], r, 5, bound=partial(frechet_bound, kappa=-1.0)),
            "kappa: got -1.0",
        ),
        (lambda r: select([arm(0)], r, 5, bound=partial(asymptotic_bound, delta=2.0)), "got 2.0"),
        (lambda r: select_by_inception_score([arm(0)], 5), "no distributions"),
        (lambda r: kernel_ridge(2, gaussian_kernel(1.0), alpha=0.0), "alpha: got 0.0"),
        (lambda r: fourier_ridge(2, 7, 1.0), "features: got 7; allowed: an even"),
        (lambda r: gaussian_kernel(0.0), "length: got 0.0"),
        (
            lambda r: choose([lambda s, x: np.nan], r, kernel_ridge(2, gaussian_kernel(1.0))),
            "score of nan",
        ),
        (
            lambda r: choose([], r, kernel_ridge(2, gaussian_kernel(1.0))),
            "generators: got '0 of them'",
        ),
        (
            lambda r: choose([len] * 3, r[:2], kernel_ridge(2, gaussian_kernel(1.0))),
            "contexts: got \\(2, 2\\)",
        ),
    ],
)
def test_bad_input_is_one_message(call, words):
    with pytest.raises(UsageError, match=words):
        call(np.random.default_rng(0).normal(size=(50, 2)))
