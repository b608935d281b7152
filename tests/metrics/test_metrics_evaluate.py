"""Laws of the classifier, the evaluator and its receipts."""

from __future__ import annotations

import json
import time

import jax
import numpy as np
import pytest

from jaxgen import files
from jaxgen.data import whole
from jaxgen.data.digits import digits
from jaxgen.errors import UsageError
from jaxgen.metrics import Sampling, Training, cached, train_classifier
from jaxgen.metrics.evaluate import evaluate, look
from jaxgen.metrics.extractors import classifier
from jaxgen.metrics.receipt import receipt
from jaxgen.metrics.scores.manifold import KINDS
from jaxgen.metrics.sets.quantise import quantise

BRIEF = Training(epochs=4)


@pytest.fixture(scope="module")
def halves():
    return whole(digits(split="train")), whole(digits(split="test"))


@pytest.fixture(scope="module")
def brief(halves):
    train, _ = halves
    return train_classifier(train["image"], train["label"], 10, BRIEF)


def test_the_default_classifier_reaches_its_accuracy_on_digits(halves):
    train, test = halves
    start = time.process_time()
    network = train_classifier(train["image"], train["label"], 10)
    seconds = time.process_time() - start
    assert network.accuracy(test["image"], test["label"]) >= 0.985
    # CPU seconds, so that other work on the machine does not count.
    assert seconds < 60


def test_training_is_deterministic_from_its_seed(halves, brief):
    train, _ = halves
    again = train_classifier(train["image"], train["label"], 10, BRIEF)
    assert again.digest == brief.digest
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(brief.params), strict=True)
    )
    other = train_classifier(train["image"], train["label"], 10, Training(epochs=4, seed=1))
    assert other.digest != brief.digest
    assert not np.array_equal(other.features(train["image"]), brief.features(train["image"]))


def test_predictions_do_not_depend_on_the_batch_or_on_bytes(halves, brief):
    _, test = halves
    image = test["image"]
    probabilities = brief.probabilities(image)
    assert probabilities.shape == (len(image), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(
        probabilities[300:307], brief.probabilities(image[300:307]), atol=1e-5
    )
    features = brief.features(image)
    assert features.shape == (len(image), 64)
    codes = quantise(image)
    np.testing.assert_allclose(
        brief.features(codes), brief.features((codes / 127.5 - 1).astype(np.float32)), atol=1e-4
    )
    assert brief.features(image[:0]).shape == (0, 64)
    with pytest.raises(UsageError, match=r"images: got \(2, 9, 8, 1\)"):
        brief.features(np.zeros((2, 9, 8, 1), np.uint8))


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 48, 3)])
def test_the_network_takes_images_of_any_size(shape):
    network = classifier.ConvNet(3)
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert outputs[0].shape == (2, 64) and outputs[1].shape == (2, 3)


def test_the_patch_product_is_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    for stride in (1, 2):
        layer = classifier.Convolution(5, stride)
        ours, variables = layer.init_with_output(jax.random.key(1), x)
        kernel = variables["params"]["Dense_0"]["kernel"].reshape(3, 3, 3, 5)
        with jax.default_matmul_precision("highest"):
            theirs = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_augmentation_moves_by_at_most_the_shift_and_mirrors_on_request():
    image = np.zeros((500, 5, 5, 1), np.float32)
    image[:, 2, 1] = 1
    moved = np.asarray(classifier.augment(jax.random.key(0), image, 1, False))
    places = {tuple(p) for p in np.argwhere(moved[..., 0])[:, 1:]}
    assert places == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}
    mirrored = np.asarray(classifier.augment(jax.random.key(0), image, 0, True))
    share = mirrored[:, 2, 3, 0].mean()
    assert abs(share - 0.5) < 0.12 and (mirrored[:, 2, 1, 0] + mirrored[:, 2, 3, 0] == 1).all()


def test_a_cached_classifier_is_reused_while_its_data_are_the_same(halves, tmp_path, monkeypatch):
    train, test = halves
    file = tmp_path / "deep" / "classifier.safetensors"
    arguments = (train["image"], train["label"], 10, BRIEF)
    first = cached(file, *arguments)
    trained = []
    monkeypatch.setattr(
        classifier,
        "train_classifier",
        lambda *a, _train=classifier.train_classifier: trained.append(1) or _train(*a),
    )
    again = cached(file, *arguments)
    assert not trained and again.digest == first.digest
    np.testing.assert_array_equal(again.features(test["image"]), first.features(test["image"]))
    changed = train["label"].copy()
    changed[0] = (changed[0] + 1) % 10
    assert cached(file, train["image"], changed, 10, BRIEF).digest != first.digest
    assert len(trained) == 1
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="training it anew"):
        cached(file, *arguments)
    assert len(trained) == 2 and [p.name for p in file.parent.iterdir()] == [file.name]
    flipped = bytearray(file.read_bytes())
    flipped[-3] ^= 1  # in a weight
    file.write_bytes(flipped)
    with pytest.warns(UserWarning, match="not those that were written"):
        cached(file, *arguments)
    assert len(trained) == 3


def test_a_classifier_needs_images_and_labels():
    with pytest.raises(UsageError, match="classifier: got '3 images and 2 labels'"):
        train_classifier(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(2, np.int32), 2)


# --- evaluate


NAMES = {
    "nan_samples",
    "fd_classifier",
    "fd_classifier_matched",
    "kid_classifier",
    "precision_k3_classifier",
    "recall_k3_classifier",
    "density_k5_classifier",
    "coverage_k5_classifier",
    "accuracy_classifier",
    "inception_score_classifier",
    "memorised_p1",
}


def score(halves, brief, samples, labels, extractors=(), intervals=0, **options):
    seen = look(samples, labels, *halves, brief, extractors)
    return evaluate(seen, intervals=intervals, **options)


def test_fresh_real_images_score_at_the_floor(halves, brief):
    train, test = halves
    # The test half as samples: every score is as good as can be.
    scores = score(halves, brief, test["image"], test["label"])
    assert set(scores) == NAMES
    assert all("floor" in s and s["better"] in ("lower", "higher") for s in scores.values())
    assert scores["fd_classifier"]["value"] < 1e-6 < scores["fd_classifier"]["floor"]
    assert all(scores[f"{name}_k3_classifier"]["value"] == 1 for name in ("precision", "recall"))
    accuracy = scores["accuracy_classifier"]
    assert accuracy["value"] == accuracy["floor"] > 0.8
    assert scores["memorised_p1"]["value"] == scores["memorised_p1"]["floor"] <= 0.011
    # The training half as samples: value and floor are the same, and all of it is memorised.
    scores = score(halves, brief, train["image"], train["label"])
    of_neighbours = [f"{kind}_k{k}_classifier" for kind, (k, _) in KINDS.items()]
    for name in ("fd_classifier", *of_neighbours):
        assert scores[name]["value"] == pytest.approx(scores[name]["floor"], rel=1e-9)
    assert scores["memorised_p1"]["value"] == 1


def test_bad_samples_score_far_from_the_floor(halves, brief):
    train, test = halves
    noise = np.random.default_rng(0).uniform(-1, 1, test["image"].shape)
    scores = score(halves, brief, noise, test["label"])
    assert scores["fd_classifier"]["value"] > 5 * scores["fd_classifier"]["floor"]
    assert scores["kid_classifier"]["value"] > 5 * abs(scores["kid_classifier"]["floor"])
    assert scores["accuracy_classifier"]["value"] < 0.3
    assert scores["memorised_p1"]["value"] == 0
    # One class only: precise, without recall.
    ones = np.flatnonzero(test["label"] == 1)
    chosen = np.resize(ones, 400)
    scores = score(halves, brief, test["image"][chosen], test["label"][chosen])
    assert scores["precision_k3_classifier"]["value"] == 1
    assert scores["recall_k3_classifier"]["value"] < 0.25
    assert scores["inception_score_classifier"]["value"] < 2


def test_scores_depend_on_bytes_and_not_on_the_order_of_samples(halves, brief):
    train, test = halves
    order = np.random.default_rng(1).permutation(len(test["image"]))
    plain = score(halves, brief, test["image"][::-1], test["label"][::-1])
    bytes_ = score(halves, brief, quantise(test["image"])[order], test["label"][order])
    # Drawn subsets and splits are others in another order.
    drawn = {"kid_classifier", "fd_classifier", "fd_classifier_matched"}
    for name in NAMES - drawn - {"inception_score_classifier"}:
        assert plain[name]["value"] == pytest.approx(bytes_[name]["value"]), name
    whole = [s["inception_score_classifier"]["also"]["whole"] for s in (plain, bytes_)]
    assert whole[0] == pytest.approx(whole[1])


def test_counts_are_matched_to_the_floor(halves, brief):
    train, test = halves
    many = np.concatenate([test["image"], train["image"]])
    labels = np.concatenate([test["label"], train["label"]])
    scores = score(halves, brief, many, labels)
    assert scores["fd_classifier_matched"]["samples"] == len(train["image"])
    assert scores["fd_classifier"]["samples"] == len(many)
    assert scores["kid_classifier"]["samples"] == len(many)
    few = score(halves, brief, many[:300], labels[:300])
    matched = "fd_classifier_matched"
    assert few[matched]["samples"] == 300
    assert few[matched]["floor"] > scores[matched]["floor"]


def test_samples_that_are_not_finite_are_counted_and_wrong(halves, brief):
    train, test = halves
    broken = test["image"].copy()
    broken[:89, 0, 0, 0] = np.nan
    scores = score(halves, brief, broken, test["label"])
    assert scores["nan_samples"]["value"] == 89
    assert scores["fd_classifier"]["samples"] == len(broken) - 89
    right = brief.accuracy(quantise(broken[89:]), test["label"][89:]) * (len(broken) - 89)
    assert scores["accuracy_classifier"]["value"] == pytest.approx(right / len(broken))


def test_other_features_add_their_own_scores(halves, brief):
    class Pixels:
        name, digest = "pixels", "none"

        def features(self, images):
            return images.reshape(len(images), -1)[:, ::4] / 255

    train, test = halves
    scores = score(halves, brief, test["image"], test["label"], extractors=(Pixels(),))
    assert {"fd_pixels", "kid_pixels", "precision_k3_pixels", "coverage_k5_pixels"} <= set(scores)
    assert scores["fd_pixels"]["features"] == "pixels"


@pytest.mark.parametrize(
    ("samples", "labels", "message"),
    [
        (np.full((70, 8, 8, 1), np.nan), np.zeros(70), "0 finite images"),
        (np.zeros((70, 9, 8, 1)), np.zeros(70), r"samples: got \(70, 9, 8, 1\)"),
        (np.zeros((70, 8, 8, 1)), np.zeros(69), "labels: got"),
    ],
)
def test_what_cannot_be_scored_is_refused(halves, brief, samples, labels, message):
    with pytest.raises(UsageError, match=message):
        score(halves, brief, samples, labels)


@pytest.mark.parametrize(
    "count, name, why",
    [
        (20, "fd_classifier", "generated features: got '20 images'; allowed: 65"),
        (4, "precision_k3_classifier", "6 or more"),
    ],
)
def test_what_few_samples_do_not_allow_is_left_out_unless_asked_for(
    halves, brief, count, name, why
):
    few, labels, left_out = np.zeros((count, 8, 8, 1)), np.zeros(count), {}
    assert name not in score(halves, brief, few, labels, left_out=left_out)
    assert why in left_out[name]
    with pytest.raises(UsageError, match=why):
        score(
            halves,
            brief,
            few,
            labels,
            scores=[name.removesuffix("_classifier").replace("fd", "fid")],
        )


def test_receipts_are_json_and_name_everything(halves, brief, tmp_path):
    train, test = halves
    scores = score(halves, brief, test["image"], test["label"])
    scores["broken"] = {"value": float("nan"), "floor": np.float64(np.inf), "better": "lower"}
    sampling = Sampling(
        labels="balanced",
        seed=0,
        solver="heun",
        steps=18,
        nfe=35,
        guidance={"weight": 2.0},
        ema="0.05",
        dtype="bfloat16",
    )
    found = receipt(scores, sampling, data={"name": "digits.digits"}, extra={"images_seen": 10})
    files.write(tmp_path / "receipt.json", files.json_text(found))
    read = json.loads((tmp_path / "receipt.json").read_text(), parse_constant=pytest.fail)
    assert read == found
    by_name = {s["name"]: s for s in read["scores"]}
    assert set(by_name) == NAMES | {"broken"}
    fd = by_name["fd_classifier"]
    assert fd["digest"] == brief.digest and fd["samples"] and fd["reference"] == len(test["image"])
    assert by_name["broken"]["value"] == "nan" and by_name["broken"]["floor"] == "inf"
    assert read["sampling"]["nfe"] == 35 and read["versions"]["jax"] == jax.__version__
    assert read["data"] == {"name": "digits.digits"} and read["images_seen"] == 10 and read["time"]
    assert [p.name for p in tmp_path.iterdir()] == ["receipt.json"]
