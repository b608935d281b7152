"""Grids and files of samples say which class is which, and are read back without the words."""

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.folder import folder
from jaxgen.data.pixels import text
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.report.compare.neighbours import pixels
from jaxgen.report.pictures import bare, check_folder, grid, named, save_png, save_samples

NAMES = ("cat", "a/b: c", "2", "été " * 20)


def images(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, channels))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_named_grid_is_the_grid_beside_its_names(channels, tmp_path):
    labels = np.repeat([0, 1, 3, 4], 5)
    plain = grid(images(20, channels), 5)
    picture, said = named(plain, NAMES, labels, 5)
    assert picture.shape[1] > plain.shape[1] and picture.shape[0] == plain.shape[0]
    np.testing.assert_array_equal(bare(picture, said), plain)
    left = picture[:, : picture.shape[1] - plain.shape[1], :3]
    # Ink in the middle of every row.
    assert all((row < 128).any() for row in np.array_split(left, 4))
    assert said["Rows"].splitlines()[0] == "cat" and said["Rows"].splitlines()[3] == "no label"
    save_png(tmp_path / "x.png", picture, said)
    data = (tmp_path / "x.png").read_bytes()
    np.testing.assert_array_equal(pixels(data, "x.png"), plain)
    assert text(tmp_path / "x.png") == said


def test_rows_of_several_classes_have_no_name():
    plain = grid(images(6), 3)
    picture, said = named(plain, NAMES, np.array([0, 0, 1, 1, 1, 1]), 3)
    np.testing.assert_array_equal(picture, plain)
    assert said == {"Rows": "cat, cat, a/b: c\na/b: c"}
    np.testing.assert_array_equal(bare(plain, {}), plain)


def test_files_are_called_by_their_class_and_read_as_it(tmp_path):
    made = images(5)
    out = tmp_path / "out"
    out.mkdir()
    save_samples(out, 0, made, [0, 1, 2, 3, 1], NAMES)
    found = sorted(p.name for p in out.iterdir())
    assert found[:3] == ["000000_cat_label0.png", "000001_a-b-c_label1.png", "000002_label2.png"]
    assert found[3].startswith("000003_été-été") and len(found[3]) < 70
    source = folder(str(out), 8)
    assert source.class_names == NAMES and source.labels.tolist() == [0, 1, 2, 3, 1]
    np.testing.assert_array_equal(source.images(np.arange(5)), quantise(made))
    with pytest.raises(ValueError, match="--replace"):
        check_folder(out, replace=False)
    check_folder(out, replace=True)
    Image.new("L", (4, 4)).save(out / "mine.png")
    with pytest.raises(ValueError, match="mine.png"):
        check_folder(out, replace=True)
