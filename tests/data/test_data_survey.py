"""A folder's images as a config sees them before it is chosen: `data.survey`."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.folder import folder
from jaxgen.data.survey import survey
from jaxgen.errors import UsageError


def put(root, *names, size=(40, 30), mode="RGB", **saved):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        channels = () if mode == "L" else (3,)
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *channels), np.uint8)
        Image.fromarray(pixels).save(root / name, **saved)


def opened(root, seen, split):
    how = dict(one_class=seen.one_class, splits=seen.splits)
    return folder(str(root), 8, split=split, channels=3, **how)


FORMS = {
    # files: (classes, images of each, train, test)
    "classes": (["cat/1.png", "cat/a/2.png", "dog/1.png"], (("cat", 2), ("dog", 1)), "train", None),
    "one class": (["1.png", "2.png"], (("all", 2),), "train", None),
    "splits": (
        ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "val/dog/2.png"],
        (("cat", 1), ("dog", 1)),
        "train",
        "test",
    ),
    "other names": (
        ["training/cat/1.png", "validation/cat/1.png"],
        (("cat", 1),),
        "training",
        "validation",
    ),
    "splits of one class": (
        ["train/1.png", "train/2.png", "val/1.png"],
        (("all", 2),),
        "train",
        "val",
    ),
    "classes called as splits": (
        ["train/1.png", "bus/2.png", "test/1.png"],
        (("bus", 1), ("test", 1), ("train", 1)),
        "train",
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_source_opens_what_the_survey_says(form, tmp_path):
    files, classes, train, test = FORMS[form]
    put(tmp_path, *files)
    seen = survey(str(tmp_path))
    assert tuple(zip(seen.classes, seen.counts, strict=True)) == classes
    assert (seen.train, seen.test) == (train, test)
    source = opened(tmp_path, seen, seen.train)
    assert source.class_names == seen.classes and len(source) == seen.images
    assert np.bincount(source.labels).tolist() == list(seen.counts)
    if test is not None and len(classes) == 1:
        assert len(opened(tmp_path, seen, test)) == 1


def test_sizes_are_medians_upright_and_grey_is_what_has_no_colours(tmp_path):
    put(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", size=(90, 60), mode="L")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    put(tmp_path, "a/4.jpg", "a/5.jpg", "a/6.jpg", "a/7.jpg", size=(90, 60), mode="L", exif=exif)
    (tmp_path / "a" / "8.png").write_bytes(b"nothing")
    seen = survey(str(tmp_path))
    assert (seen.width, seen.height, seen.side, seen.grey, seen.unread) == (60, 90, 60, True, 1)
    put(tmp_path, "a/9.png")
    assert not survey(str(tmp_path)).grey


def test_labels_of_stylegans_file_are_classes(tmp_path):
    put(tmp_path, "00/1.png", "00/2.png", "01/3.png")
    pairs = [["00/1.png", 0], ["00/2.png", 1], ["01/3.png", 1]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    seen = survey(str(tmp_path))
    assert seen.classes == ("0", "1") and seen.counts == (1, 2)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": None}))
    seen = survey(str(tmp_path))
    assert seen.one_class and len(opened(tmp_path, seen, "train")) == 3


def test_no_folder_no_images_and_images_of_no_class_are_refused(tmp_path):
    with pytest.raises(UsageError, match="path: got .*none'; allowed: an existing folder"):
        survey(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="a folder with images"):
        survey(str(tmp_path))
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no image can be read"):
        survey(str(tmp_path))
    with pytest.raises(UsageError, match="source.one_class=True"):
        folder(str(tmp_path), 8)
    with pytest.raises(UsageError, match="source.split: got 'test'"):
        folder(str(tmp_path), 8, split="test", one_class=True)
    with pytest.raises(UsageError, match="source.split: got 'test'.*no sub-folders"):
        folder(str(tmp_path), 8, split="test", one_class=True, splits=True)
