"""`jaxgen evaluate --samples --reference`: sets that anyone made, their receipts, bad input."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.api import evaluate_files
from jaxgen.cli import main
from jaxgen.data import whole
from jaxgen.data.digits import digits
from jaxgen.data.folder import centre_crop, folder
from jaxgen.errors import UsageError
from jaxgen.metrics import Training, train_classifier
from jaxgen.metrics.scores.table import SCORES, Pair, Side, compute
from jaxgen.metrics.sets import files as score_files
from jaxgen.metrics.sets import reading as sets

ROWS, COLUMNS = np.arange(1, 65)[:, None], np.arange(1, 5)[None]
X = np.sin(0.37 * ROWS * COLUMNS)
Y = 0.5 + 1.3 * np.cos(0.23 * ROWS * (COLUMNS + 1))


def command(*words) -> list[str]:
    return ["evaluate", *map(str, words)]


@pytest.fixture
def files(tmp_path):
    """What can be scored, by name."""
    chance = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "mu.npz", mu=X.mean(0), sigma=np.cov(X, rowvar=False), size=64)
    images = chance.integers(0, 256, (30, 5, 6, 3), np.uint8)
    np.savez(tmp_path / "bytes.npz", arr_0=images, arr_1=np.arange(30) % 3)
    np.savez(tmp_path / "floats.npz", images=images / 127.5 - 1)
    for i, image in enumerate(images):
        folder = tmp_path / "folder" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path


def test_the_command_line_prints_the_golden_values(files, capsys):
    out = files / "receipt.json"
    words = ("--samples", files / "y.npy", "--reference", files / "x.npy")
    assert main(command(*words, "--features", "identity", "--json", "--out", out)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    found = {name: score["value"] for name, score in printed["scores"].items()}
    golden = {
        "fid": 1.0144009595365242,
        "kid": 1.1644249965733886,
        "cmmd": 8.042136770321617,
        "precision_k3": 0.078125,
        "recall_k3": 0.0625,
    }
    for name, value in golden.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10)
    for score in printed["scores"].values():
        assert score["floor"] is not None and score["samples"] == score["reference"] == 64
        low, high = score["interval"]
        assert low <= score["value"] <= high
    assert printed["reference"]["sha256"] != printed["samples"]["sha256"]


def test_receipts_of_files_are_compared_and_unlike_ones_refused(files, capsys):
    for name, words in (("one", []), ("two", []), ("cut", ["--scores", "fid", "--reference"])):
        reference = files / ("y.npy" if name == "cut" else "x.npy")
        samples = files / ("x.npy" if name == "two" else "y.npy")
        given = [*words[:2], "--samples", samples, "--reference", reference, "--intervals", 0]
        assert main(command(*given, "--out", files / f"{name}.json")) == 0
    page = ["--out", str(files / "page.html"), "--json"]
    capsys.readouterr()
    assert main(["compare", str(files / "one.json"), str(files / "two.json"), *page]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["fid"]["best"] and (files / "page.html").stat().st_size > 1000
    assert main(["compare", str(files / "one.json"), str(files / "cut.json"), *page]) == 2
    assert "reference.sha256" in capsys.readouterr().err


def test_moments_are_enough_for_fid_and_for_nothing_else(files):
    found = evaluate_files(files / "y.npy", files / "mu.npz")["scores"]
    assert list(found) == ["fid"]
    np.testing.assert_allclose(found["fid"]["value"], 1.0144009595365242, rtol=1e-10)
    with pytest.raises(UsageError, match="mu and sigma alone"):
        evaluate_files(files / "y.npy", files / "mu.npz", scores=["precision_k3"])


def test_files_of_the_same_images_are_the_same_set(files):
    kinds = [sets.load(files / f, option="--samples") for f in ("bytes.npz", "floats.npz")]
    assert kinds[0].sha256 == kinds[1].sha256
    folder = sets.load(files / "folder", option="--samples")
    assert folder.classes == ("a", "b", "c") and folder.images.shape == (30, 5, 6, 3)
    order = np.argsort(kinds[0].labels, kind="stable")
    by_name = [sorted(order[kinds[0].labels[order] == c], key=str) for c in range(3)]
    np.testing.assert_array_equal(folder.images, kinds[0].images[np.concatenate(by_name)])
    np.testing.assert_array_equal(folder.labels, np.repeat([0, 1, 2], 10))


def side(chance, count: int = 200, shift: float = 0.0) -> Side:
    """All that a score can ask for, of one law or of one beside it."""
    labels = np.arange(count) % 2
    features = chance.normal(size=(count, 4)) + labels[:, None] + [shift, 0, 0, 1]
    spatial = chance.normal(size=(count, 6)) + shift
    p = chance.dirichlet(np.ones(3), count)
    return Side(features, labels, spatial=spatial, probabilities=p)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_keeps_to_its_limits_and_tells_fresh_draws_from_others(name):
    chance = np.random.default_rng(2)
    score, real, train = SCORES[name], side(chance), side(chance)
    pairs = [Pair(real, made, train) for made in (side(chance), side(chance, shift=4.0))]
    fresh, apart = (score.value(pair)["value"] for pair in pairs)
    assert all(score.limits[0] <= v <= score.limits[1] for v in (fresh, apart))
    # Of the samples alone, or high for whatever is far from all data.
    if name not in ("vendi", "inception_score", "authenticity"):
        key = {"lower": fresh, "higher": -fresh, "zero": abs(fresh)}[score.better]
        other = {"lower": apart, "higher": -apart, "zero": abs(apart)}[score.better]
        assert key < other
    alone = Pair(Side(real.features), Side(real.features))
    assert alone.has(score.needs) == (score.needs <= {"features"})


def test_copies_of_the_training_set_are_found():
    chance = np.random.default_rng(3)
    real, train = side(chance), side(chance)
    names = ["authenticity", "copying", "likelihood_divergence"]
    copies, fresh = (
        {k: v["value"] for k, v in compute(Pair(real, made, train), names).items()}
        for made in (train, side(chance))
    )
    assert copies["authenticity"] == 0 < 0.3 < fresh["authenticity"]
    # A standard normal for fresh draws, and far below for copies.
    assert copies["copying"] < -5 < -3 < fresh["copying"]
    assert copies["likelihood_divergence"] > 10 + fresh["likelihood_divergence"]


def test_all_that_can_be_had_is_scored_when_asked(files):
    found = evaluate_files(
        files / "y.npy", files / "x.npy", train=files / "x.npy", scores=["all"], intervals=0
    )["scores"]
    assert {"authenticity", "mauve", "sliced_wasserstein", "fid_infinity"} <= set(found)
    assert not {"fid_classwise", "inception_score", "sfid"} & set(found)
    # The training set is no fresh data: its floor in copying is that of the reference.
    assert abs(found["fid"]["floor"]) < 1e-12 and "x.npy" in found["fid"]["floor_of"]
    assert "half of the reference" in found["authenticity"]["floor_of"]


def test_intervals_are_as_wide_as_fresh_draws_spread():
    """Half samples against 40 fresh pairs: the standard deviation of fid, within a factor 1.5."""
    chance = np.random.default_rng(1)

    def draw() -> Pair:
        made = chance.normal(size=(200, 3)) * [1.0, 1.5, 0.7] + [0.5, 0, 0]
        return Pair(Side(chance.normal(size=(200, 3))), Side(made))

    names = ["fid", "precision_k3", "kid"]
    for name in names:
        fresh = np.std([SCORES[name].value(draw())["value"] for _ in range(40)], ddof=1)
        guesses = []
        for _ in range(5):
            low, high = compute(draw(), [name], intervals=30)[name]["interval"]
            guesses.append((high - low) / (2 * 1.96))
        # Eight standard errors of the ratio, about .11, each way.
        assert 1 / 1.9 < np.mean(guesses) / fresh < 1.9, (name, guesses, fresh)


def test_the_standard_error_of_two_halves_is_their_distance_over_the_root_of_two():
    """The unbiased deviation, which is not half of the distance."""
    chance = np.random.default_rng(4)
    pair = Pair(Side(chance.normal(size=(60, 3))), Side(chance.normal(size=(60, 3)) + 0.2))
    drawn = np.random.default_rng(pair.seed)
    one, two = (SCORES["fid"].value(pair.half(drawn))["value"] for _ in range(2))
    found = compute(pair, ["fid"], intervals=2)["fid"]
    low, high = found["interval"]
    np.testing.assert_allclose((high - found["value"]) / 1.96, abs(one - two) / 2**0.5, rtol=1e-9)
    assert low == max(0.0, 2 * found["value"] - high)


def test_images_are_scored_by_a_classifier_of_the_reference(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        score_files,
        "train_classifier",
        functools.partial(train_classifier, training=Training(epochs=4)),
    )
    half = whole(digits("train"))
    rest = whole(digits("test"))
    np.savez(tmp_path / "real.npz", images=half["image"], labels=half["label"])
    np.savez(tmp_path / "made.npz", images=rest["image"])
    words = ("--samples", tmp_path / "made.npz", "--reference", tmp_path / "real.npz")
    assert main(command(*words, "--features", "classifier", "--intervals", 0, "--json")) == 0
    found = json.loads(capsys.readouterr().out)["scores"]
    name = "reference_classifier"
    assert set(found) >= {f"fd_{name}", f"kid_{name}", f"precision_k3_{name}"}
    score = found[f"fd_{name}"]
    assert score["features"] == name and len(score["digest"]) == 64
    assert found[f"precision_k3_{name}"]["value"] > 0.8


def test_of_one_image_no_interval_is_had_and_nothing_breaks(files):
    np.save(files / "one.npy", X[:1])
    found = evaluate_files(files / "one.npy", files / "x.npy", scores=None)
    assert all(score["interval"] is None for score in found["scores"].values())


BAD = {
    "too few": (
        "--samples one.npy --reference x.npy --scores fid",
        "5 or more for a Frechet distance",
    ),
    "too few for balls": (
        "--samples one.npy --reference x.npy --scores density_k5",
        "6 or more for precision",
    ),
    "nan": (
        "--samples nan.npy --reference x.npy",
        "1 of 64 rows hold values that are not finite",
    ),
    "constant": (
        "--samples constant.npy --reference x.npy",
        "64 equal rows",
    ),
    "widths": (
        "--samples wide.npy --reference x.npy",
        "the same number on both sides",
    ),
    "missing": (
        "--samples no.npy --reference x.npy",
        "that exists",
    ),
    "kind": (
        "--samples text.txt --reference x.npy",
        "a folder of images",
    ),
    "broken array": (
        "--samples cut.npy --reference x.npy",
        "a whole array file",
    ),
    "pickle": (
        "--samples pickle.npy --reference x.npy",
        "without pickles",
    ),
    "score": (
        "--samples y.npy --reference x.npy --scores fidd",
        "Did you mean 'fid'",
    ),
    "labels": (
        "--samples labels.npz --reference x.npy",
        "one an image: (64,)",
    ),
    "corrupt": (
        "--samples corrupt --reference folder",
        "1.png",
    ),
    "sizes": (
        "--samples sizes --reference folder",
        "images of one size",
    ),
    "shapes": (
        "--samples small.npz --reference bytes.npz --features classifier",
        "the reference's image shape (5, 6, 3)",
    ),
    "unlabelled": (
        "--samples bytes.npz --reference floats.npz --features classifier",
        "labels of two classes or more",
    ),
    "one class": (
        "--samples bytes.npz --reference one_class.npz --features classifier",
        "labels of two classes or more",
    ),
    "channels": (
        "--samples first.npz --reference bytes.npz",
        "transpose(0, 2, 3, 1)",
    ),
    "unit": (
        "--samples unit.npz --reference bytes.npz",
        "floats with --range",
    ),
    "beyond": (
        "--samples beyond.npz --reference bytes.npz",
        "values in [-1, 1]",
    ),
    "identity": (
        "--samples bytes.npz --reference bytes.npz --features identity",
        "arrays [N, d], which are the features",
    ),
    "features": (
        "--samples x.npy --reference x.npy --features classifier",
        "Features are scored by --features identity",
    ),
    "statistics": (
        "--samples mu.npz --reference x.npy",
        "images or features",
    ),
    "no labels": (
        "--samples y.npy --reference x.npy --scores fid_classwise",
        "labels on both sides",
    ),
    "no training": (
        "--samples y.npy --reference x.npy --scores copying",
        "--train, the training images",
    ),
    "intervals": (
        "--samples x.npy --reference x.npy --intervals 1",
        "2 and more",
    ),
    "neither": (
        "--samples x.npy",
        "one of the two",
    ),
    "mixed": (
        "--samples x.npy --reference x.npy --guidance 2",
        "only with --workdir",
    ),
    "a place": (
        "--samples x.npy --workdir runs",
        "a number with --workdir",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_code_2(files, case, capsys, monkeypatch):
    monkeypatch.chdir(files)
    images = np.load("bytes.npz")["arr_0"]
    broken = X.copy()
    broken[3, 2] = np.nan
    np.save("one.npy", X[:1])
    np.save("nan.npy", broken)
    np.save("constant.npy", np.ones((64, 4)))
    np.save("wide.npy", np.ones((64, 5)) * ROWS)
    np.save("pickle.npy", np.array([{}], object), allow_pickle=True)
    (files / "cut.npy").write_bytes((files / "x.npy").read_bytes()[:-100])
    (files / "text.txt").write_text("no")
    np.savez("labels.npz", features=X, labels=np.arange(3))
    np.savez("small.npz", images=images[:, :4])
    np.savez("one_class.npz", images=images, labels=np.zeros(30, int))
    np.savez("first.npz", images=np.moveaxis(images, -1, 1))
    np.savez("unit.npz", images=images / 255)
    np.savez("beyond.npz", images=images / 127.5 - 1.5)
    for name in ("corrupt", "sizes"):
        (files / name).mkdir()
        for i in range(3):
            Image.fromarray(images[i]).save(files / name / f"{i}.png")
    (files / "corrupt" / "1.png").write_bytes((files / "corrupt" / "1.png").read_bytes()[:60])
    Image.fromarray(images[1][:3]).save(files / "sizes" / "1.png")
    words, message = BAD[case]
    assert main(command(*words.split())) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("jaxgen: error:") == 1 and "Traceback" not in said


def means(images):
    """Features of one's own: an image's mean colour."""
    return images.mean((1, 2))


def test_images_of_other_sizes_are_resized_as_training_does_and_the_receipt_says_so(tmp_path):
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 256, (9 + i, 14, 3), np.uint8) for i in range(6)]
    for i, pixels in enumerate(pictures):
        (tmp_path / "photos" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / str(i % 2) / f"{i}.png")
    found = sets.load(tmp_path / "photos", option="--reference", image_size=8)
    source = folder(str(tmp_path / "photos"), 8)
    np.testing.assert_array_equal(found.images, source.images(np.arange(6)))
    assert "bicubic" in found.describe()["resize"] and "8 pixels" in found.describe()["resize"]
    np.savez(tmp_path / "a.npz", arr_0=found.images, arr_1=source.labels)
    same = sets.load(tmp_path / "a.npz", option="--samples", image_size=8)
    assert same.resize is None and same.sha256 == found.sha256
    np.savez(tmp_path / "b.npz", arr_0=np.stack([p[:9] for p in pictures]), arr_1=source.labels)
    other = sets.load(tmp_path / "b.npz", option="--samples", image_size=8)
    expected = [np.asarray(centre_crop(Image.fromarray(p[:9]), 8)) for p in pictures]
    np.testing.assert_array_equal(other.images, expected)
    grey = sets.load(tmp_path / "photos", option="--reference", image_size=8, channels=1)
    same = folder(str(tmp_path / "photos"), 8, channels=1)
    np.testing.assert_array_equal(grey.images, same.images(np.arange(6)))
    with pytest.raises(UsageError, match="--image_size: got 0"):
        sets.load(tmp_path / "a.npz", option="--samples", image_size=0)
    receipt = evaluate_files(
        tmp_path / "a.npz",
        tmp_path / "photos",
        features=f"{__name__}:means",
        scores=["fid"],
        image_size=8,
    )
    assert "resize" not in receipt["samples"] and "bicubic" in receipt["reference"]["resize"]
