"""A folder is walked once and in one way: what is taken, what is left out, which class is which."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.classes import matched, natural
from jaxgen.data.folder import folder
from jaxgen.data.holdout import held_out
from jaxgen.data.pixels import png
from jaxgen.data.source import in_memory
from jaxgen.data.union import union
from jaxgen.errors import UsageError
from jaxgen.files import local
from jaxgen.metrics.sets.reading import load


def put(root, *names, colour=0):
    """Images of 4x4 pixels, each of another grey."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (colour + i,) * 3).save(root / name, "PNG")
    return root


def opened(path, **options):
    return folder(str(path), 4, **options)


def both(path):
    """The same folder trained on and scored: (source, set)."""
    return opened(path), load(path, option="--reference")


def test_numbers_in_names_count_by_their_values():
    names = ["10", "9", "2", "1", "class10b", "class2", "class10a", "b", "A"]
    want = ("1", "2", "9", "10", "A", "b", "class2", "class10a", "class10b")
    assert natural(names) == want


def test_classes_of_training_and_scoring_are_the_same_and_in_natural_order(tmp_path):
    put(tmp_path, *(f"{i}/{i}.png" for i in (0, 1, 2, 9, 10, 11)))
    source, scored = both(tmp_path)
    assert source.class_names == scored.classes == ("0", "1", "2", "9", "10", "11")
    np.testing.assert_array_equal(source.labels, scored.labels)
    for index, file in enumerate(source.files):
        assert source.class_names[source.labels[index]] == os.path.basename(file)[:-4]


def test_hidden_things_are_left_out_at_any_depth_and_counted(tmp_path):
    put(
        tmp_path, "cat/a.png", "cat/deep/deeper/b.jfif", "dog/c.PNG", "cat/.hidden.png",
        "dog/.cache/d.png", "__MACOSX/cat/a.png", ".git/x.png", "dog/@eaDir/e.png", "cat/._a.png",
    )  # fmt: skip
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "clip.mpg").write_bytes(b"x")
    put(tmp_path, "stray.png")
    source, scored = both(tmp_path)
    assert len(source) == len(scored.images) == 3 and source.class_names == ("cat", "dog")
    assert source.notes == scored.notes
    (note,) = source.notes
    assert "7 hidden files and folders" in note and "1 .mpg files, 1 .txt files" in note
    assert "1 images beside the folders of classes" in note


def test_links_are_followed_but_not_in_circles(tmp_path):
    data = put(tmp_path / "data", "cat/a.png", "dog/b.png")
    put(tmp_path / "elsewhere", "x/c.png")
    (data / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "loop").symlink_to(data)
    (data / "cat" / "again").symlink_to(data / "dog" / "back")
    (data / "dog" / "back").symlink_to(data / "cat")
    (data / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    source = opened(data)
    names = sorted({os.path.basename(f) for f in source.files})
    assert names == ["a.png", "b.png", "c.png"]
    assert "links to a folder that they are in" in source.notes[0]
    assert "1 links to nothing" in source.notes[0]


def test_a_folder_of_splits_is_told_from_a_class_called_train(tmp_path):
    splits = put(tmp_path / "splits", "train/bus/a.png", "train/car/b.png", "val/bus/c.png")
    assert opened(splits).class_names == ("bus", "car") and len(opened(splits)) == 2
    assert len(opened(splits, split="val")) == 1
    with pytest.raises(UsageError, match="source.split: got 'test'.*train, val"):
        opened(splits, split="test")
    with pytest.raises(UsageError, match="one split"):
        load(splits, option="--reference")
    vehicles = put(tmp_path / "vehicles", "bus/a.png", "car/b.png", "train/c.png")
    nested = put(
        tmp_path / "nested", "bus/a.png", "car/b.png", "train/steam/c.png", "train/e/d.png"
    )
    for path in (vehicles, nested):
        source, scored = both(path)
        assert source.class_names == scored.classes == ("bus", "car", "train")
    assert len(opened(nested)) == 4
    with pytest.raises(UsageError, match="source.split: got 'test'.*classes and no splits"):
        opened(nested, split="test")


@pytest.mark.parametrize(
    "names",
    [
        ("train/a.png", "test/b.png"),  # halves without classes, or two classes
        ("train/a.png",),
        ("train/bus/a.png", "val/bus/b.png", "extra/bus/c.png"),
    ],
)
def test_what_may_be_read_either_way_is_asked(tmp_path, names):
    put(tmp_path, *names)
    with pytest.raises(UsageError, match=r"source\.splits=True or False"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="Give one of its sub-folders"):
        load(tmp_path, option="--samples")
    assert len(opened(tmp_path, splits=False)) == len(names)


def test_splits_beside_masks_and_of_other_names_can_be_asked_for(tmp_path):
    put(tmp_path, "train/bus/a.png", "mine/bus/b.png")
    with pytest.raises(UsageError, match="splits"):
        opened(tmp_path)
    assert len(opened(tmp_path, split="mine", splits=True)) == 1


def test_stylegans_labels_are_read_and_what_does_not_fit_is_refused(tmp_path):
    put(tmp_path, "00000/a.png", "00000/b.png", "00001/c.png")
    file = tmp_path / "dataset.json"

    def say(labels):
        file.write_text(json.dumps({"labels": labels}))

    right = [["00000/a.png", 1], ["00000/b.png", 0], ["00001/c.png", 1]]
    say(right)
    source, scored = both(tmp_path)
    np.testing.assert_array_equal(source.labels, [1, 0, 1])
    np.testing.assert_array_equal(scored.labels, [1, 0, 1])
    assert source.class_names == scored.classes == ("0", "1")
    for labels, message in (
        (right[:2], "1 images without a label"),
        ([*right, ["x.png", 0]], "1 labels without an image"),
        ([[n, [0.5, 1]] for n, _ in right], "integers"),
        ([["00000/a.png"]], "as StyleGAN writes it"),
    ):
        say(labels)
        for read in (opened, lambda path: load(path, option="--reference")):
            with pytest.raises(UsageError, match=message):
                read(tmp_path)
    say(None)
    with pytest.raises(UsageError, match="images of no class"):
        opened(tmp_path)
    assert load(tmp_path, option="--reference").labels is None


def test_empty_classes_are_refused_for_training_and_are_none_for_scoring(tmp_path):
    put(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "emu").mkdir()
    with pytest.raises(UsageError, match="emu"):
        opened(tmp_path)
    assert load(tmp_path, option="--samples").classes == ("cat", "dog")


def test_an_order_of_classes_can_be_given(tmp_path):
    put(tmp_path, "cat/a.png", "dog/b.png")
    source = opened(tmp_path, class_names=("dog", "cat"))
    np.testing.assert_array_equal(source.labels, [1, 0])
    with pytest.raises(UsageError, match="source.class_names.*cat, dog.*Did you mean 'dog '"):
        opened(tmp_path, class_names=("dog ", "cat"))


def test_classes_are_matched_by_name_and_a_mismatch_shows_both_lists(tmp_path):
    np.testing.assert_array_equal(
        matched(("b", "a"), ("a", "b"), option="--x", whose="these"), [1, 0]
    )
    with pytest.raises(UsageError, match="--x: got 'classes a, b'.*these: b, c.*here: a.*there: c"):
        matched(("a", "b"), ("b", "c"), option="--x", whose="these")
    one = put(tmp_path / "one", "cat/a.png", "dog/b.png", colour=10)
    other = put(tmp_path / "other", "dog/b.png", "emu/a.png", colour=20)
    section = dict(name="folder.folder", image_size=4)
    with pytest.raises(UsageError, match="cat, dog.*emu|emu.*cat, dog"):
        union((section | dict(path=str(one)), section | dict(path=str(other))))


def test_opening_decodes_nothing(tmp_path, monkeypatch):
    put(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "dog" / "spoilt.png").write_bytes(b"spoilt")
    source = opened(tmp_path)
    assert len(source) == 3
    with pytest.raises(UsageError, match="spoilt.png"):
        source.images(np.array([2]))
    source.images(np.array([0, 1]))


def test_home_is_expanded_and_other_machines_are_refused_at_once(tmp_path, monkeypatch):
    put(tmp_path / "data", "cat/a.png", "dog/b.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(opened("~/data")) == 2
    assert len(load("~/data", option="--samples").images) == 2
    for path in ("gs://bucket/data", "s3://b", "hdfs:/x", "file:///x"):
        with pytest.raises(UsageError, match="a path of this machine"):
            opened(path)
        with pytest.raises(UsageError, match="--workdir"):
            local("--workdir", path)
    assert local("--x", "C:/x") and local("--x", "a:b")


def labelled(count=200, classes=4, copies=3):
    """Images of which every one lies there `copies` times, some under two labels."""
    chance = np.random.default_rng(0)
    images = np.repeat(chance.integers(0, 256, (count, 2, 2, 1), np.uint8), copies, 0)
    labels = np.repeat(np.arange(count) % classes, copies)
    labels[::50] = (labels[::50] + 1) % classes
    order = chance.permutation(len(images))
    return images[order], labels[order]


def contents(source):
    return {image.tobytes() for image in source.images(np.arange(len(source)))}


def test_copies_stay_on_one_side_and_every_class_is_split():
    images, labels = labelled()
    source = in_memory(images, labels)
    rest, test, about = held_out(source, 0.25, 0)
    assert len(rest) + len(test) == len(source) == about["train"] + about["test"]
    assert not contents(rest) & contents(test)
    assert contents(rest) | contents(test) == contents(source)
    for label in range(4):
        share = (test.labels == label).sum() / (labels == label).sum()
        assert 0.2 < share < 0.3
    pairs = {(i.tobytes(), y) for i, y in zip(images, labels.tolist(), strict=True)}
    for half in (rest, test):
        found = half.images(np.arange(len(half)))
        assert {(i.tobytes(), y) for i, y in zip(found, half.labels.tolist(), strict=True)} <= pairs


def test_a_split_depends_on_contents_and_seed_alone():
    images, labels = labelled()
    first = held_out(in_memory(images, labels), 0.1, 0)
    again = held_out(in_memory(images[::-1].copy(), labels[::-1].copy()), 0.1, 0)
    other = held_out(in_memory(images, labels), 0.1, 1)
    assert contents(first[1]) == contents(again[1]) != contents(other[1])
    assert first[2] == again[2] != other[2]


def test_what_cannot_be_held_out_is_refused():
    images = np.zeros((6, 2, 2, 1), np.uint8)
    for fraction, message in ((0.5, "enough that differ"), (1.0, "between 0 and 1")):
        with pytest.raises(UsageError, match=message):
            held_out(in_memory(images, np.arange(6) % 2), fraction, 0)
    # A class of one image is left to training.
    chance = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), np.uint8)
    rest, test, _ = held_out(in_memory(chance, np.array([0] * 8 + [1])), 0.5, 0)
    assert (rest.labels == 1).sum() == 1 and len(test) == 4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 3)), "source.range"),
        (np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)), "source.range"),
        (np.zeros((4, 3, 16, 16), np.uint8) + 9, "transpose"),
        (np.zeros((4, 1, 28, 28), np.uint8) + 9, "transpose"),
        (np.arange(256).reshape(4, 8, 8) % 2, "source.range"),
        ((np.arange(256).reshape(4, 8, 8) % 2).astype(np.uint8), "source.range"),
    ],
)
def test_arrays_are_asked_what_their_numbers_mean(images, message):
    with pytest.raises(UsageError, match=message):
        in_memory(images, np.arange(4))


def test_a_range_makes_the_same_pictures_of_the_same_bytes():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for given, range in ((images / 255, "0,1"), (images / 127.5 - 1, "-1,1"), (images, None)):
        source = in_memory(given, np.arange(4), range=range)
        values = source.images(np.arange(4)).astype(float)
        values = values / 127.5 - 1 if source.levels == 256 else values
        np.testing.assert_allclose(values, images / 127.5 - 1, atol=1e-6)
    for whole in (images.astype(int), images.astype(float)):
        source = in_memory(whole, np.arange(4), range="0,255")
        np.testing.assert_array_equal(source.images(np.arange(4)), images)


def test_samples_of_ours_say_their_classes_and_others_have_numbers(tmp_path):
    for i, (label, name) in enumerate([(2, "dog"), (0, "a/b"), (2, "dog")]):
        said = {"Class": name}
        (tmp_path / f"{i:06d}_label{label}.png").write_bytes(
            png(np.full((4, 4, 3), i, np.uint8), said)
        )
    for found in both(tmp_path):
        names = getattr(found, "class_names", None) or found.classes
        assert names == ("a/b", "dog") and found.labels.tolist() == [1, 0, 1]
    # One of no class among them: nothing is known of the set.
    (tmp_path / "000003_label3.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    assert load(tmp_path, option="--samples").labels is None
    for file in tmp_path.iterdir():
        file.write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    found = load(tmp_path, option="--samples")
    assert found.labels.tolist() == [2, 0, 2, 3] and found.classes is None
