"""Which label is which class, wherever two sets meet; and that what is written is read back."""

from __future__ import annotations

import dataclasses
import json
import shutil

import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxgen.api import write_samples
from jaxgen.data import Streamed, at_hand, whole
from jaxgen.data.arrays import arrays
from jaxgen.data.folder import folder
from jaxgen.data.pixels import opened, png
from jaxgen.errors import UsageError
from jaxgen.method import Spec
from jaxgen.metrics.evaluate import evaluate, look
from jaxgen.metrics.extractors.classifier import Training, train_classifier
from jaxgen.metrics.sets.reading import Set, aligned, load
from jaxgen.report.compare.neighbours import pixels
from jaxgen.report.pictures import cut
from jaxgen.run.model import Samples
from jaxgen.run.record import recorded
from jaxgen.run.setup import set_up, text_order
from tests.run.test_record import answer, arguments, refusal, write_folder
from tests.running import run_here
from tests.tiny import get_config

NAMES = ("1", "2", "10")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("labels") / "data", NAMES, each=8)


@pytest.fixture(scope="module")
def trained(data):
    """A run on classes 1, 2 and 10 without a test half, which is held out."""
    workdir = data.parent / "run"
    found = answer(
        *arguments(workdir, data), "--config.data.holdout=0.25", "--config.classify.at_end=True"
    )
    return workdir, found


def test_a_run_without_a_test_half_is_refused_before_it_trains(data, tmp_path):
    words = [*arguments(tmp_path / "run", data), "--config.classify.at_end=True"]
    err = refusal(*words)
    assert "config.data.test: got 'test'" in err and "data.holdout=0.1" in err
    assert not (tmp_path / "run").exists()


def test_a_half_held_out_is_in_receipts_and_must_be_what_it_was(trained, data, tmp_path):
    workdir, found = trained
    held = found["results"]["classify"]["holdout"]
    assert held["fraction"] == 0.25 and held["train"] == 18 and held["test"] == 6
    assert recorded(workdir)["holdout"] == held and recorded(workdir)["spec"]["classes"] == [*NAMES]
    assert found["classes"] == found["results"]["classify"]["classes"] == [*NAMES]
    again = answer("classify", "--workdir", str(workdir))
    assert (
        again["holdout"] == held and again["accuracy"] == found["results"]["classify"]["accuracy"]
    )
    more = shutil.copytree(data, tmp_path / "more")
    (more / "1" / "new.png").write_bytes(png(np.full((8, 8, 1), 77, np.uint8)))
    run = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"]["path"] = str(more)
    (run / "config.json").write_text(json.dumps(config))
    assert "Images have come, gone or changed" in refusal("classify", "--workdir", str(run))


def test_samples_are_scored_by_the_names_of_their_classes(trained, data, tmp_path):
    workdir, _ = trained
    out = tmp_path / "out"
    words = ("sample", "--workdir", str(workdir), "--out", str(out), "--per_label", "3")
    answer(*words, "--labels", "10,1")
    names = sorted(file.name for file in out.iterdir())
    assert names == [
        f"{i:06d}_{said}.png" for i, said in enumerate(["10_label2"] * 3 + ["1_label0"] * 3)
    ]
    found, known = load(out, option="--samples"), load(data, option="--reference")
    assert found.classes == ("1", "10") and known.classes == NAMES
    # Ten is the third class, not what stands second among names as text.
    assert aligned(found, known, "--samples", print).labels.tolist() == [2] * 3 + [0] * 3
    assert folder(str(out), 8, channels=1).class_names == ("1", "10")
    # Ten more beside them would be scored with them.
    err = refusal(*words, "--labels", "2")
    assert "--out" in err and "6 files" in err and "--replace" in err
    answer(*words, "--labels", "2", "--replace")
    assert load(out, option="--samples").classes == ("2",)
    (out / "mine.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    assert "mine.png" in refusal(*words, "--replace")


def test_sets_of_other_classes_are_refused_with_both_lists(tmp_path):
    write_folder(tmp_path / "a", ("bird", "dog"))
    write_folder(tmp_path / "b", ("dog", "zebra"))
    words = ("--samples", str(tmp_path / "a"), "--reference", str(tmp_path / "b"))
    for features in ((), ("--features", "classifier")):
        err = refusal("evaluate", *words, *features, "--intervals", "0")
        assert "bird, dog" in err and "dog, zebra" in err


def a_set(labels, classes=None):
    return Set(
        "a set", "", features=np.zeros((len(labels), 2)), labels=np.array(labels), classes=classes
    )


def test_labels_without_names_are_names_if_numbers_are_and_else_places():
    said: list[str] = []

    def meet(data, reference):
        return aligned(data, reference, "--samples", said.append).labels.tolist()

    assert meet(a_set([0, 1], ("b", "a")), a_set([0, 1], ("a", "b"))) == [1, 0]
    assert meet(a_set([1, 10, 2]), a_set([0, 1, 2], NAMES)) == [0, 2, 1]
    assert meet(a_set([0, 1, 2], NAMES), a_set([1, 2, 10])) == [1, 2, 10]
    assert meet(a_set([5, 6]), a_set([6, 5])) == [5, 6] and not said
    # Samples of some of the classes, which are called by numbers.
    some = dataclasses.replace(a_set([0, 0], ("3",)), some=True)
    assert meet(some, a_set([0, 1, 2, 3])) == [3, 3] and not said
    assert meet(some, a_set([0, 1], ("2", "3"))) == [1, 1] and not said
    with pytest.raises(UsageError, match="2, 4"):
        meet(some, a_set([0, 1], ("2", "4")))
    assert meet(a_set([1, 0]), a_set([0, 1], ("a", "b"))) == [1, 0]
    assert "places among a, b" in said[-1]
    with pytest.raises(UsageError, match="labels of the 2 classes a, b"):
        meet(a_set([2, 0]), a_set([0, 1], ("a", "b")))


def config_of(path):
    config = get_config()
    with config.unlocked():
        config.data.source = ml_collections.ConfigDict(
            dict(name="folder.folder", path=str(path), image_size=8, channels=1)
        )
    return config


def test_a_run_goes_on_with_the_classes_in_the_order_in_which_it_has_them(data):
    config, order = config_of(data), ("1", "10", "2")
    setup = set_up(config, classes=lambda source: order)
    assert setup.spec.classes == order and set_up(config).spec.classes == NAMES
    for index, file in enumerate(setup.source.files):
        assert order[setup.source.labels[index]] == file.split("/")[-2]
    # Runs of before names were recorded had them as text.
    assert text_order(set_up(config).source) == order
    # A model whose record has another order looks at data by name.
    later = set_up(config, spec=setup.spec).source
    np.testing.assert_array_equal(later.labels, setup.source.labels)


def test_a_start_from_other_classes_is_refused_unless_labels_are_left_out(trained, tmp_path):
    workdir, _ = trained
    data = write_folder(tmp_path / "data", ("ant", "bee", "cow"))
    words = [*arguments(tmp_path / "run", data), "--config.train.images=16"]
    err = refusal(*words, f"--config.start={workdir}")
    assert "1, 2, 10" in err and "ant, bee, cow" in err and "config.start.skip" in err
    skip = dict(workdir=str(workdir), skip=("label",))
    code, _, err = run_here(*words, f"--config.start={skip!r}")
    assert code == 0, err


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_is_read_back(tmp_path, channels):
    names = ("dog", "bird/of prey", "10")
    chance = np.random.default_rng(channels)
    wanted = chance.integers(0, 256, (7, 8, 8, channels), np.uint8)
    labels = np.array([2, 0, 1, 1, 0, 2, 2])
    samples = Samples(
        images=wanted.astype(np.float32) / 127.5 - 1, codes=None, labels=labels, seed=0, ema="",
        options={}, calls=1, steps=1, seconds=1.0,
    )  # fmt: skip
    spec = Spec((8, 8, channels), 3, classes=names)
    for name in ("x.npz", "folder", "grid.png"):
        write_samples(tmp_path / name, samples, 3, spec)
    hidden = wanted.copy()
    if channels in (2, 4):
        hidden[wanted[..., -1] == 0, :-1] = 255
    for name in ("x.npz", "folder"):
        found = load(tmp_path / name, option="--samples")
        np.testing.assert_array_equal(found.images, wanted)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.classes == names
    for source in (
        folder(str(tmp_path / "folder"), 8, channels=channels),
        arrays(str(tmp_path / "x.npz")),
    ):
        assert source.class_names == names and source.shape == (8, 8, channels)
        np.testing.assert_array_equal(source.labels, labels)
        images = source.images(np.arange(7))
        if images.dtype != np.uint8:
            images = np.round((images + 1) * 127.5)
        np.testing.assert_array_equal(images, hidden if source.levels == 256 else wanted)
    picture = pixels((tmp_path / "grid.png").read_bytes(), "grid.png")
    shown = cut(picture, 8, 8)[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    np.testing.assert_array_equal(shown, wanted)
    with Image.open(tmp_path / "grid.png") as file:
        assert file.text["Rows"].splitlines()[0] == "10, dog, bird/of prey"
    np.save(tmp_path / "x.npy", wanted)
    np.testing.assert_array_equal(load(tmp_path / "x.npy", option="--x").images, wanted)


def test_values_beyond_the_range_are_clipped_where_the_file_says_so(tmp_path):
    images = np.full((2, 4, 4, 1), 1.5, np.float32) * [[[[1.0]]], [[[-1.0]]]]
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1], clip=[-1.0, 1.0])
    found = arrays(str(tmp_path / "x.npz")).images(np.arange(2))
    assert found.min() == -1 and found.max() == 1
    np.savez(tmp_path / "y.npz", images=images, labels=[0, 1])
    with pytest.raises(UsageError, match="values in"):
        arrays(str(tmp_path / "y.npz"))


def test_a_large_half_is_read_a_part_at_a_time_and_scores_are_the_same(data, tmp_path):
    write_folder(tmp_path, ("a", "b"), each=140)
    source = folder(str(tmp_path), 8, channels=1)
    held = whole(source)
    read: list[int] = []

    class Watched(type(source)):
        def images(self, indices):
            read.append(len(indices))
            return super().images(indices)

    watched = Watched(**{f.name: getattr(source, f.name) for f in dataclasses.fields(source)})
    assert at_hand(source)["image"].dtype == np.uint8
    streamed = at_hand(watched, limit=1000)
    assert isinstance(streamed["image"], Streamed)
    for places in (slice(3, 9), np.array([7, 0, 7])):
        np.testing.assert_array_equal(streamed["image"][places], held["image"][places])
    small = [chunk for chunk in streamed["image"].chunks(50)]
    np.testing.assert_array_equal(np.concatenate(small), held["image"])
    network = train_classifier(held["image"], held["label"], 2, Training(epochs=1))
    made = held["image"][::2]
    labels = held["label"][::2]
    read.clear()
    scores = []
    for half in (held, streamed):
        seen = look(made, labels, half, held, network)
        scores.append(evaluate(seen, intervals=0))
        digest = seen.learnt.sha256
    assert digest == look(made, labels, held, held, network).learnt.sha256
    assert scores[0].keys() == scores[1].keys()
    for name, score in scores[0].items():
        np.testing.assert_allclose(score["value"], scores[1][name]["value"], rtol=1e-5, atol=1e-6)


def test_a_spoilt_image_is_named_by_whoever_meets_it_and_by_nobody_else(trained, data, tmp_path):
    workdir, _ = trained
    images = shutil.copytree(data, tmp_path / "images")
    (images / "2" / "spoilt.png").write_bytes(b"")
    err = refusal("classify", "--workdir", str(workdir), "--images", str(images))
    assert "spoilt.png" in err and "empty" in err
    run = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"]["path"] = str(images)
    config["data"].pop("holdout")
    (run / "config.json").write_text(json.dumps(config))
    answer("sample", "--workdir", str(run), "--out", str(tmp_path / "x.npz"), "--per_label", "1")
    err = refusal("classify", "--workdir", str(run), "--split", "train")
    assert "spoilt.png" in err


def test_addresses_are_refused_before_any_work():
    for words in (
        ("train", "--config", "tests/tiny.py", "--workdir", "gs://bucket/run"),
        ("sample", "--workdir", "s3://bucket/run"),
        ("evaluate", "--samples", "gs://b/x.npz", "--reference", "y.npz"),
        ("train", "--config", "tests/tiny.py", "--workdir", "w",
         '--config.data.source={"name": "folder.folder", "path": "gs://b/x", "image_size": 8}'),
    ):  # fmt: skip
        assert "a path of this machine" in refusal(*words)


def test_the_decoder_is_one(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    (tmp_path / "x.png").write_bytes(png(image))
    np.testing.assert_array_equal(np.asarray(opened(tmp_path / "x.png")), image)
