"""`jaxgen data`: what is written is what training sees, and is read as it stands."""

from __future__ import annotations

import copy
import json
import os

import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxgen.api import write_data
from jaxgen.cli import main
from jaxgen.data.array_record import array_record
from jaxgen.data.arrays import arrays
from jaxgen.data.digits import digits
from jaxgen.data.folder import centre_crop, folder
from jaxgen.errors import UsageError
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.metrics.sets.reading import load

NAMES = ("ant", "bee 2", "bee 10")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of three classes of pictures of several sizes, and a config of it."""
    root = tmp_path_factory.mktemp("images")
    for y, name in enumerate(NAMES):
        (root / name).mkdir()
        for i in range(6 + y):
            pixels = np.random.default_rng(100 * y + i).integers(0, 256, (20 + i, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    source = dict(name="folder.folder", path=str(root), image_size=16)
    return ml_collections.ConfigDict(dict(data=dict(source=source, flip=True)))


def opened(form: str, out):
    if form == "folder":
        return folder(str(out), 16)
    if form == "npz":
        return arrays(str(out / "{split}.npz"))
    return array_record(str(out / "{split}.array_record"))


@pytest.mark.parametrize("form", ["folder", "npz", "array_record"])
def test_what_is_written_is_what_training_sees(form, images, tmp_path):
    known = folder(**{k: v for k, v in images.data.source.items() if k != "name"})
    found = write_data(images, tmp_path / "out", format=form)
    assert found["classes"] == {"ant": 6, "bee 2": 7, "bee 10": 8} and found["flip"]
    assert (found["images"], found["shape"], found["format"]) == (21, [16, 16, 3], form)
    source = opened(form, tmp_path / "out")
    assert source.class_names == known.class_names
    np.testing.assert_array_equal(source.labels, known.labels)
    np.testing.assert_array_equal(source.images(np.arange(21)), known.images(np.arange(21)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_halves_are_those_that_are_held_out(images, tmp_path):
    config = copy.deepcopy(images)
    config.data.holdout = 0.25
    both = []
    for split in ("train", "test"):
        found = write_data(config, tmp_path / split, split=split)
        assert found["images"] == found["holdout"][split]
        both += folder(str(tmp_path), 16, split=split).images(np.arange(found["images"])).tolist()
    known = folder(images.data.source.path, 16).images(np.arange(21)).tolist()
    assert sorted(both) == sorted(known)
    with pytest.raises(UsageError, match="source.split: got 'test'"):
        write_data(images, split="test")


def test_another_size_is_that_of_the_same_resizer(images, tmp_path, capsys):
    found = write_data(images, tmp_path / "x.npz", image_size=8)
    assert found["shape"] == [8, 8, 3] and "bicubic" in found["resize"]
    seen = folder(images.data.source.path, 16).images(np.arange(21))
    expected = [np.asarray(centre_crop(Image.fromarray(image), 8)) for image in seen]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["images"], expected)


def test_floats_are_the_bytes_that_are_scored_and_adm_reads_arr_0_and_arr_1(tmp_path, capsys):
    out = tmp_path / "digits.npz"
    data = ["data", "--config", "configs/digits.py", "--split", "test", "--out", str(out)]
    assert main([*data, "--npz", "adm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 896
    stored, source = np.load(out), digits(split="test")
    assert sorted(stored.files) == ["arr_0", "arr_1"] and stored["arr_0"].dtype == np.uint8
    bytes_ = quantise(source.images(np.arange(896)))
    np.testing.assert_array_equal(stored["arr_0"], np.repeat(bytes_, 3, -1))
    np.testing.assert_array_equal(stored["arr_1"], source.labels)
    read = load(out, option="--reference", channels=1)
    np.testing.assert_array_equal(read.images, bytes_)
    np.testing.assert_array_equal(read.labels, source.labels)


def test_without_out_nothing_is_written_and_the_classes_are_said(images, tmp_path, capsys):
    (tmp_path / "c.py").write_text(
        "import ml_collections\n"
        f"SOURCE = {images.data.source.to_dict()!r}\n"
        "def get_config():\n"
        "    return ml_collections.ConfigDict(dict(data=dict(source=SOURCE, holdout=0.25)))\n"
    )
    assert main(["data", "--config", str(tmp_path / "c.py"), "--config.data.flip=True"]) == 0
    out = capsys.readouterr().out
    assert "train: 15 images 16x16x3, 3 classes" in out and "held out by content: 6 of 21" in out
    assert "bee 10" in out and "mirrored at random" in out and "->" not in out
    assert set(os.listdir(tmp_path)) - {"__pycache__"} == {"c.py"}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({}, dict(out="there"), "--out: got .*a new or an empty folder"),
        ({}, dict(out="x.npz", format="folder"), "--format: got 'folder'; allowed: npz"),
        ({}, dict(format="npz"), "--format: got 'npz'; allowed: with --out"),
        ({}, dict(out="x", npz="adm"), "--npz: got 'adm'"),
        ({}, dict(image_size=0), "--image_size: got 0"),
        (dict(name="hypergrid.hypergrid"), {}, "images of 1 to 4 channels"),
        (dict(class_names=("a", "A")), dict(out="x"), "names that can be folders"),
        (dict(class_names=("a", "../b")), dict(out="x"), "'../b'.*names that can be folders"),
        (dict(class_names=("a", ".b")), dict(out="x"), "names that can be folders"),
    ],
)
def test_what_cannot_be_written_is_refused(source, options, message, images, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    config = copy.deepcopy(images)
    if "class_names" in source:
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
        source = dict(name="arrays.arrays", path=str(tmp_path / "a.npz"), range="0,255", **source)
    if source:
        config.data = ml_collections.ConfigDict(dict(source=source))
    out = options.pop("out", None)
    with pytest.raises(UsageError, match=message):
        write_data(config, None if out is None else tmp_path / out, **options)
    assert set(os.listdir(tmp_path)) <= {"there", "a.npz"}
