"""The classification's receipt, of class densities that are known: N(MEANS[label], STD^2)."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.classify import add_noise, noise_levels
from jaxgen.data import whole
from jaxgen.errors import UsageError
from jaxgen.method import Method, Spec, fold
from jaxgen.metrics.scores import calibration
from jaxgen.run.model import Model
from jaxgen.run.setup import set_up
from jaxgen.scoring import classify
from jaxgen.scoring.classify import classification_line, images_of
from tests import tiny


@pytest.fixture(scope="module")
def parts():
    return set_up(tiny.get_config())


def means(parts) -> np.ndarray:
    train = whole(parts.source)
    return np.stack([train["image"][train["label"] == c].mean(0) for c in range(10)])


def nearest(parts, std: float, spread: float = 0.0) -> Model:
    """A model that knows the class means; spread: of noise in its estimates, apart by label."""
    centres = jnp.asarray(means(parts))

    def error(params, x, labels, keys, draw, draws):
        off = jax.vmap(jax.random.normal)(fold(jax.vmap(jax.random.fold_in)(keys, draw), 0))
        exact = ((x - centres[labels]) ** 2).sum((1, 2, 3)) / (2 * std**2)
        return exact + spread * off * labels

    method = Method(
        spec=parts.spec, init=None, update=None, label_error=error, label_noise=spread > 0
    )
    params = {"params": {"net": jnp.zeros(1)}}
    return Model(dataclasses.replace(parts, method=method), params, images=1, step=1)


def by_hand(parts, std: float, order: np.ndarray, noise: float = 0.0):
    """(scores, labels) of test images at places `order`, in float64."""
    images = images_of(parts, parts.test_source, order, noise).astype(np.float64)
    square = ((images[:, None] - means(parts)) ** 2).sum((2, 3, 4))
    return -square / (2 * std**2), parts.test_source.labels[order]


def test_a_receipt_holds_what_the_scores_say(parts, tmp_path):
    found = classify(nearest(parts, 0.5), tmp_path, limit=300, noise=(0.0, 0.3, 1.0))
    order = np.random.default_rng(0).permutation(len(parts.test_source))[:300]
    scores, labels = by_hand(parts, 0.5, order)
    pair = calibration.cross_fitted(scores, labels)
    np.testing.assert_allclose(found["temperatures"], pair, rtol=1e-3)
    for entry, std in zip([found, *found["noise"]], (0, 0, 0.3, 1.0), strict=True):
        scores, labels = by_hand(parts, 0.5, order, std)
        p = scipy.special.softmax(scores, axis=1)
        assert entry["accuracy"] == (scores.argmax(1) == labels).mean()
        assert entry["nll"] == pytest.approx(-np.log(p[np.arange(300), labels]).mean(), rel=1e-3)
        tempered = scipy.special.softmax(scores / np.resize(pair, 300)[:, None], axis=1)
        own = -np.log(tempered[np.arange(300), labels]).mean()
        assert entry["tempered"]["nll"] == pytest.approx(own, rel=1e-3)
        assert entry["calls_per_image"] == 10
    accuracies = [entry["accuracy"] for entry in found["noise"]]
    assert accuracies[0] > 0.85 and accuracies[0] > accuracies[2] + 0.05
    assert found["rounds"] == [[1, 1]] and "ln p(image | label)" in found["posterior"]
    assert sum(found["reliability"]["count"]) == 300
    (path,) = (tmp_path / "receipts").glob("classify_test*.json")
    assert json.loads(path.read_text()) == found


def test_the_temperature_undoes_the_scale_of_a_likelihood(parts, tmp_path):
    """Half the deviation is four times the log ratios: four times the temperature, no other law."""
    once = classify(nearest(parts, 0.5), tmp_path, limit=400)
    twice = classify(nearest(parts, 0.25), tmp_path, limit=400)
    ratios = np.divide(twice["temperatures"], once["temperatures"])
    np.testing.assert_allclose(ratios, 4, rtol=1e-2)
    assert twice["nll"] > 2 * once["nll"] and twice["ece"] > once["ece"]
    for name in ("nll", "ece", "brier", "accuracy"):
        assert twice["tempered"][name] == pytest.approx(once["tempered"][name], abs=1e-3)
    assert once["tempered"]["nll"] < once["nll"]


def test_elimination_is_said_with_what_it_costs(parts, tmp_path):
    model = nearest(parts, 1.0, spread=0.5)
    halved = classify(model, tmp_path, limit=100, draws=16)
    whole_ = classify(model, tmp_path, limit=100, draws=16, rounds="one")
    assert (halved["calls_per_image"], whole_["calls_per_image"]) == (58, 160)
    assert halved["rounds"] == [[2, 5], [4, 3], [8, 2], [16, 1]] and whole_["rounds"] == [[16, 1]]
    assert "dropped" in halved["posterior"] and "dropped" not in whole_["posterior"]
    assert "16 estimates of a bound" in whole_["posterior"]


def test_one_image_has_no_temperature(parts, tmp_path):
    found = classify(nearest(parts, 0.5), tmp_path, limit=1, noise=(0.1,))
    assert found["tempered"] is None and found["noise"][0]["tempered"] is None
    assert found["temperatures"] is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(draws=0), "draws: got 0"),
        (dict(rounds="one", draws=0), "draws: got 0"),
        (dict(rounds="halve"), "--rounds: got 'halve'.*Did you mean 'halving'"),
        (dict(noise=(0.1, -0.2)), "--noise: got -0.2"),
        (dict(noise=(float("nan"),)), "--noise: got nan"),
        (dict(noise=(float("inf"),)), "--noise: got inf"),
        (dict(noise=(0.1, 0.1)), "--noise: .* once"),
    ],
)
def test_what_cannot_be_asked(parts, tmp_path, asked, words):
    with pytest.raises(UsageError, match=words):
        classify(nearest(parts, 0.5, spread=1.0), tmp_path, limit=5, **asked)
    assert not (tmp_path / "receipts").exists()


@pytest.mark.parametrize(
    "spec", [Spec((4, 4), 10, levels=64, tokens=True), Spec((4, 4, 2), 10, levels=None)]
)
def test_noise_is_for_pixels(spec):
    assert noise_levels(spec, ()) == ()
    with pytest.raises(UsageError, match="--noise: .* not pixels"):
        noise_levels(spec, (0.1,))


def test_noise_has_its_deviation_on_the_datas_levels():
    spec = Spec((32, 32, 1), 10, levels=256)
    keys = jax.random.split(jax.random.key(0), 20)
    grey = spec.from_tokens(jnp.full((20, 32, 32, 1), 128))
    noisy = np.asarray(add_noise(spec, grey, keys, 0.1))
    steps = (noisy + 1) / spec.width
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    # Of 20,480 draws; rounding adds width^2 / 12 to the variance.
    assert np.std(noisy - grey) == pytest.approx(np.hypot(0.1, spec.width / 12**0.5), rel=0.02)
    assert abs(np.mean(noisy - grey)) < 4 * 0.1 / np.sqrt(20_480)
    loud = np.asarray(add_noise(spec, grey, keys, 5.0))
    assert loud.min() == -1 and loud.max() == 1
    # The same noise at every deviation, up to rounding.
    twice = np.asarray(add_noise(spec, grey, keys, 0.2))
    np.testing.assert_allclose(twice - grey, 2 * (noisy - grey), atol=2 * spec.width)
    np.testing.assert_array_equal(add_noise(spec, grey, keys, 0.0), grey)


def test_the_noise_of_an_image_is_its_own(parts):
    source = parts.test_source
    many = images_of(parts, source, np.array([7, 3, 5]), 0.3, seed=1)
    np.testing.assert_array_equal(images_of(parts, source, np.array([3]), 0.3, seed=1), many[1:2])
    clean = images_of(parts, source, np.array([7, 3, 5]))
    noise = (many - clean).reshape(3, -1)
    assert np.abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.5
    other = images_of(parts, source, np.array([3]), 0.3, seed=2)
    assert np.abs(other - many[1:2]).max() > 0.1


def test_its_line_says_how_right_and_how_sure(parts, tmp_path):
    model = nearest(parts, 0.5)
    found = classify(model, tmp_path, limit=50)
    line = classification_line(found)
    assert f"{100 * found['accuracy']:.2f} % of 50" in line and "calibration error" in line
