"""Calibration against scikit-learn, closed forms, and what is calibrated by construction."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from jaxgen.errors import UsageError
from jaxgen.metrics.scores import calibration


def posteriors(count, classes=6, seed=0, sharpness=2.0):
    """Logits [N, C], probabilities, and labels drawn from them: calibrated by construction."""
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.normal(size=(count, classes))
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (rng.random(count)[:, None] > p.cumsum(1)).sum(1).clip(max=classes - 1)
    return scores, p, labels


def test_brier_and_likelihood_are_scikit_learns():
    scores, p, labels = posteriors(500)
    found = calibration.summary(scores, labels)
    each = [brier_score_loss(labels == c, p[:, c]) for c in range(p.shape[1])]
    assert found["brier"] == pytest.approx(sum(each), abs=1e-12)
    assert found["nll"] == pytest.approx(log_loss(labels, p), abs=1e-12)
    assert found["accuracy"] == (p.argmax(1) == labels).mean()


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability_is_scikit_learns_curve(bins):
    _, p, labels = posteriors(2000)
    found = calibration.reliability(p, labels, bins)
    right = p.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, p.max(1), n_bins=bins)
    some = found.count > 0
    np.testing.assert_allclose(found.accuracy[some], accuracy, atol=1e-12)
    np.testing.assert_allclose(found.confidence[some], confidence, atol=1e-12)
    gap = (found.count[some] * np.abs(accuracy - confidence)).sum() / 2000
    assert found.count.sum() == 2000 and found.error == pytest.approx(gap, abs=1e-12)


def test_an_edge_belongs_to_the_bin_below_it():
    p = np.array([[0.5, 0.5], [0.75, 0.25], [0.7500001, 0.2499999], [1.0, 0.0]])
    found = calibration.reliability(p, np.zeros(4, int), bins=4)
    assert found.count.tolist() == [0, 1, 1, 2]
    # 3 / 15 is an edge although .2 * 15 need not be 3.
    fifths = np.full((1, 5), 0.2)
    assert calibration.reliability(fifths, np.zeros(1, int), bins=15).count.argmax() == 2


def test_a_constant_predictor_has_known_values():
    labels = np.arange(1000) % 10
    found = calibration.summary(np.zeros((1000, 10)), labels)
    assert found["nll"] == pytest.approx(np.log(10)) and found["brier"] == pytest.approx(0.9)
    assert found["ece"] == pytest.approx(0, abs=1e-12) and found["accuracy"] == 0.1
    # Confident of class 0 at .7, which has a tenth of the images.
    scores = np.log(np.tile([0.7, *[0.3 / 9] * 9], (1000, 1)))
    found = calibration.summary(scores, labels)
    assert found["ece"] == pytest.approx(0.6) and found["confidence"] == pytest.approx(0.7)
    right, wrong = 0.3**2 + 0.3**2 / 9, 0.7**2 + (1 - 0.3 / 9) ** 2 + 8 * (0.3 / 9) ** 2
    assert found["brier"] == pytest.approx(0.1 * right + 0.9 * wrong)
    assert found["nll"] == pytest.approx(-0.1 * np.log(0.7) - 0.9 * np.log(0.3 / 9))


def test_what_is_calibrated_has_the_error_of_its_floor():
    """Over 60 sets of labels drawn from the probabilities; and the floor of the normal law."""
    errors, floors = [], []
    for seed in range(60):
        scores, p, labels = posteriors(800, seed=seed)
        found = calibration.summary(scores, labels)
        errors.append(found["ece"])
        floors.append(found["ece_floor"])
    spread = np.std(errors, ddof=1) / np.sqrt(60)
    assert abs(np.mean(errors) - np.mean(floors)) < 4 * spread
    top = p.max(1)
    place = np.ceil(top * 15)
    variance = [(top * (1 - top))[place == m].sum() for m in range(1, 16)]
    normal = np.sqrt(2 / np.pi * np.array(variance)).sum() / 800
    assert floors[-1] == pytest.approx(normal, rel=0.1)


@pytest.mark.parametrize("how", ["shuffled labels", "sharpened", "flattened"])
def test_what_is_not_calibrated_is_seen(how):
    scores, _, labels = posteriors(800)
    calibrated = calibration.summary(scores, labels)
    if how == "shuffled labels":
        labels = np.random.default_rng(1).permutation(labels)
    scores = scores * {"sharpened": 4.0, "flattened": 0.25}.get(how, 1.0)
    found = calibration.summary(scores, labels)
    assert calibrated["ece"] < 2 * calibrated["ece_floor"]
    assert found["ece"] > 3 * found["ece_floor"]
    assert found["nll"] > calibrated["nll"] + 0.1 and found["brier"] > calibrated["brier"]


@pytest.mark.parametrize("true", [0.3, 1.0, 40.0])
def test_the_temperature_that_was_applied_is_found(true):
    """Within four standard errors: the likelihood's curvature in 1 / T is the scores' variance."""
    scores, p, labels = posteriors(4000)
    found = calibration.temperature(true * scores, labels)
    variance = ((p * scores**2).sum(1) - (p * scores).sum(1) ** 2).sum()
    assert abs(true / found - 1) < 4 / np.sqrt(variance)
    # All that it changes is confidence.
    tempered = calibration.summary(true * scores, labels, temperature=found)
    assert tempered["accuracy"] == calibration.summary(scores, labels)["accuracy"]
    assert tempered["ece"] < 2 * tempered["ece_floor"]


def test_the_temperature_of_two_classes_is_a_logistic_regression():
    scores, _, labels = posteriors(300, classes=2)
    margin = (scores[:, 1] - scores[:, 0])[:, None]
    line = LogisticRegression(fit_intercept=False, C=1e9, tol=1e-8).fit(3 * margin, labels)
    assert calibration.temperature(3 * scores, labels) == pytest.approx(
        1 / line.coef_[0, 0], rel=1e-4
    )


def test_no_temperature_where_no_label_is_wrong():
    scores, _, _ = posteriors(50)
    assert calibration.temperature(scores, scores.argmax(1)) == 1.0
    useless = calibration.temperature(scores, scores.argmin(1))
    assert useless > 0.9 * calibration.TEMPERATURES[1]


def test_images_have_no_part_in_their_own_temperature():
    scores, _, labels = posteriors(400)
    scores[::2] *= 5
    even, odd = calibration.cross_fitted(scores, labels)
    assert (even, odd) == (
        calibration.temperature(scores[1::2], labels[1::2]),
        calibration.temperature(scores[::2], labels[::2]),
    )
    assert 4 < odd / even < 6
    each = calibration.alternating((even, odd), 401)
    assert len(each) == 401 and set(each[::2]) == {even} and set(each[1::2]) == {odd}
    log_p = calibration.log_posterior(scores, each[:400])
    np.testing.assert_allclose(log_p[:2], calibration.log_posterior(scores[:2], np.r_[even, odd]))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)


def test_log_likelihoods_far_apart_do_not_overflow():
    found = calibration.summary(np.array([[0.0, -5000.0], [0.0, -5000.0]]), np.array([0, 1]))
    assert found["nll"] == 2500 and found["ece"] == 0.5 and found["brier"] == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: calibration.reliability(np.ones((3, 2)), np.zeros(2, int)), "probabilities: got"),
        (lambda: calibration.brier(np.ones((0, 2)), np.zeros(0, int)), "N >= 1"),
        (lambda: calibration.brier(np.ones((2, 2)), np.array([0, 2])), "labels: got"),
        (lambda: calibration.reliability(np.ones((2, 2)), np.zeros(2, int), 0), "bins: got 0"),
        (lambda: calibration.cross_fitted(np.ones((1, 2)), np.zeros(1, int)), "images: got 1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(UsageError, match=words):
        call()
