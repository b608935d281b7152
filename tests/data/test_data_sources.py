"""Laws of the sources: what goes in comes out, and what is wrong is said plainly."""

from __future__ import annotations

import gzip
import importlib
import itertools
import pickle
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxgen.data import batches, order, whole
from jaxgen.data.array_record import array_record
from jaxgen.data.arrays import arrays
from jaxgen.data.digits import digits
from jaxgen.data.folder import centre_crop, folder
from jaxgen.data.idx import idx
from jaxgen.data.latents import latents
from jaxgen.data.source import check_labels, in_memory, to_channels
from jaxgen.data.tfds import tfds
from jaxgen.errors import UsageError

# --- digits


def test_digits_halves_are_stratified_disjoint_whole_and_exact():
    train, test, everything = (digits(split=s) for s in ("train", "test", "all"))
    assert len(train) + len(test) == len(everything) == 1797
    per_class = np.bincount(train.labels) - np.bincount(test.labels)
    assert set(per_class) <= {0, 1}
    joined = np.concatenate([whole(train)["image"], whole(test)["image"]]).reshape(1797, -1)
    original = load_digits().images.reshape(1797, -1)
    np.testing.assert_array_equal(np.sort((joined + 1) * 8, axis=0), np.sort(original, axis=0))
    np.testing.assert_array_equal((everything.array[..., 0] + 1) * 8, load_digits().images)
    assert train.shape == (8, 8, 1) and train.num_classes == 10
    # The split is a part of every published score: it must never move.
    assert int((np.arange(len(test)) * test.labels).sum()) == 1829724


def test_digits_refuses_an_unknown_split():
    with pytest.raises(UsageError, match="source.split: got 'val'.*train, test, all"):
        digits(split="val")


# --- idx


def idx_bytes(array, magic=None):
    header = struct.pack(">I", magic or 0x0800 + array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root, images, labels, prefix="train", zipped=False):
    for name, array in (
        (f"{prefix}-images-idx3-ubyte", images),
        (f"{prefix}-labels-idx1-ubyte", labels),
    ):
        data = idx_bytes(array)
        (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture
def pictures():
    chance = np.random.default_rng(0)
    return chance.integers(0, 256, (12, 5, 4), np.uint8), np.arange(12, dtype=np.uint8) % 4


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, pictures, zipped):
    images, labels = pictures
    write_idx(tmp_path, images, labels, zipped=zipped)
    write_idx(tmp_path, images[::-1], labels[::-1], prefix="t10k", zipped=zipped)
    train, test = idx(str(tmp_path)), idx(str(tmp_path), split="test", channels=3)
    np.testing.assert_array_equal(whole(train)["image"][..., 0], images)
    np.testing.assert_array_equal(train.labels, labels)
    np.testing.assert_array_equal(whole(test)["image"], np.repeat(images[::-1, ..., None], 3, -1))
    assert train.shape == (5, 4, 1) and test.shape == (5, 4, 3)


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_idx_is_said_to_be_truncated(tmp_path, pictures, zipped):
    write_idx(tmp_path, *pictures, zipped=zipped)
    file = next(tmp_path.glob("train-images*"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match="train-images.*truncated"):
        idx(str(tmp_path))


def test_idx_refuses_wrong_magic_missing_files_and_different_counts(tmp_path, pictures):
    images, labels = pictures
    with pytest.raises(UsageError, match="source.path.*existing folder"):
        idx(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="train-images-idx3-ubyte"):
        idx(str(tmp_path))
    write_idx(tmp_path, images, labels[:-1])
    with pytest.raises(UsageError, match="source.labels.*one label an image"):
        idx(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images, magic=0x0D03))
    with pytest.raises(UsageError, match="begins with 00000d03"):
        idx(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images) + b"x")
    with pytest.raises(UsageError, match="too long"):
        idx(str(tmp_path))


# --- labels and channels, which every source checks


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            [0, 1, 5],
            dict(num_classes=3),
            r"got 5; allowed: integers in \[0, 3\).*first at example 2",
        ),
        ([0, -1], {}, r"got -1"),
        ([0, 2], {}, "no image of 1 of 3 classes"),
        ([0, 1], dict(class_names=("a", "b", "c")), "no image of 1 of 3 classes \\('c'\\)"),
        ([0.0, 1.0], {}, "integers of shape"),
        ([], {}, "integers of shape"),
        ([0, 1], dict(class_names=("a", "b"), num_classes=3), "num_classes: got 3"),
    ],
)
def test_bad_labels_are_refused_when_the_source_is_opened(labels, options, message):
    with pytest.raises(UsageError, match=message):
        check_labels(np.array(labels), **options)


def test_channels_repeat_grey_and_weigh_colours_as_pillow_does():
    grey = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    np.testing.assert_array_equal(to_channels(grey, 3), np.concatenate([grey] * 3, -1))
    colour = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    pillow = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(to_channels(colour, 1)[..., 0], pillow)
    with pytest.raises(UsageError, match="source.channels: got 2"):
        to_channels(colour, 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3), np.uint8), "shape"),
        (np.zeros((2, 3, 3), np.int32), "int32"),
        (np.full((2, 3, 3), 1.5), "floats from 1.5"),
        (np.full((2, 3, 3), np.nan), "finite"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(UsageError, match=message):
        in_memory(images, np.arange(2))


# --- arrays


def test_arrays_round_trip_with_splits_in_file_names_or_keys(tmp_path, pictures):
    images, labels = pictures
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images[:4], labels=labels[:4])
    keys = dict(x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    np.savez(tmp_path / "keras.npz", **keys)
    assert len(arrays(str(tmp_path / "{split}.npz"), split="test")) == 4
    keras = dict(images_key="x_{split}", labels_key="y_{split}")
    assert len(arrays(str(tmp_path / "keras.npz"), split="test", **keras)) == 8
    source = arrays(str(tmp_path / "train.npz"))
    np.testing.assert_array_equal(source.images(np.array([3, 0]))[..., 0], images[[3, 0]])


def test_arrays_refuses_what_it_cannot_read(tmp_path, pictures):
    images, labels = pictures
    np.savez(tmp_path / "a.npz", images=images, label=labels)
    with pytest.raises(UsageError, match="Did you mean 'label'"):
        arrays(str(tmp_path / "a.npz"))
    with pytest.raises(UsageError, match="source.split: got 'test'"):
        arrays(str(tmp_path / "a.npz"), split="test")
    with pytest.raises(UsageError, match="existing .npz"):
        arrays(str(tmp_path / "b.npz"))
    np.savez(tmp_path / "p.npz", images=np.array([{}], dtype=object), labels=labels)
    with pytest.raises(UsageError, match="without pickles"):
        arrays(str(tmp_path / "p.npz"))
    (tmp_path / "t.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(UsageError, match="npz"):
        arrays(str(tmp_path / "t.npz"))
    np.save(tmp_path / "single.npy", images)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(UsageError, match="single array"):
        arrays(str(tmp_path / "single.npz"))


# --- folder


def write_folder(root, sizes=((40, 30), (64, 64), (21, 50)), classes=("cat", "dog")):
    chance = np.random.default_rng(0)
    for name, (n, size) in itertools.product(classes, enumerate(sizes)):
        (root / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(chance.integers(0, 256, (size[1], size[0], 3), np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(root / name / f"{n}.png")


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (31, 32), (32, 100), (64, 132), (7, 9)])
def test_centre_crop_is_adms(shape):
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    ours = np.asarray(centre_crop(Image.fromarray(pixels), 16))
    # Independently: halve by two passes of means of integers, rounded half up, as Pillow does.
    while min(pixels.shape[:2]) >= 32:
        for axis in (1, 0):
            wide = np.moveaxis(pixels, axis, 0).astype(int)
            pixels = np.moveaxis((wide[0::2] + wide[1::2] + 1) // 2, 0, axis).astype(np.uint8)
    image = Image.fromarray(pixels)
    ratio = 16 / min(image.size)
    array = np.asarray(
        image.resize((round(image.width * ratio), round(image.height * ratio)), Image.BICUBIC)
    )
    top, left = (array.shape[0] - 16) // 2, (array.shape[1] - 16) // 2
    np.testing.assert_array_equal(ours, array[top : top + 16, left : left + 16])


def test_centre_crop_keeps_an_image_of_the_right_size():
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(centre_crop(Image.fromarray(pixels), 16)), pixels)


def test_folder_reads_classes_in_order_with_splits(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", sizes=((30, 30),))
    train = folder(str(tmp_path), image_size=16)
    assert train.class_names == ("cat", "dog") and train.shape == (16, 16, 3) and len(train) == 6
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    with Image.open(tmp_path / "train" / "dog" / "0.png") as image:
        expected = np.asarray(centre_crop(image.convert("RGB"), 16))
    np.testing.assert_array_equal(train.images(np.array([3]))[0], expected)
    grey = folder(str(tmp_path), image_size=8, split="test", channels=1)
    assert grey.images(np.arange(2)).shape == (2, 8, 8, 1)
    assert len(folder(str(tmp_path / "test"), image_size=8)) == 2
    with pytest.raises(UsageError, match="source.split: got 'val'"):
        folder(str(tmp_path), image_size=8, split="val")
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again.images(np.arange(6)), train.images(np.arange(6)))


def test_undecodable_images_are_named_and_counted_and_skipped_only_on_request(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"not an image")
    file = tmp_path / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"2 of 7 images.*bad\.jpg.*1\.png.*on_error") as caught:
        folder(str(tmp_path), image_size=16, verify=True)
    assert "0.png" not in str(caught.value)
    source = folder(str(tmp_path), image_size=16, on_error="skip")
    assert len(source) == 5 and len(source.skipped) == 2 and "2 of 7 images" in source.notes[0]
    source.images(np.arange(5))
    unchecked = folder(str(tmp_path), image_size=16)
    assert len(unchecked) == 7
    with pytest.raises(UsageError, match=r"bad\.jpg"):
        list(itertools.islice(batches(unchecked, batch_size=7, seed=0), 1))


def test_folder_refuses_missing_folders_empty_classes_and_bad_options(tmp_path):
    with pytest.raises(UsageError, match="source.path.*existing folder"):
        folder(str(tmp_path / "none"), image_size=8)
    with pytest.raises(UsageError, match="one sub-folder per class"):
        folder(str(tmp_path), image_size=8)
    write_folder(tmp_path)
    for option, value in (("image_size", 0), ("channels", 5), ("on_error", "ignore")):
        with pytest.raises(UsageError, match=f"source.{option}"):
            folder(str(tmp_path), **{"image_size": 8, option: value})
    (tmp_path / "emu").mkdir()
    with pytest.raises(UsageError, match="no image of 1 of 3 classes \\('emu'\\)"):
        folder(str(tmp_path), image_size=8)


# --- latents


@pytest.fixture
def moments():
    chance = np.random.default_rng(4)
    data = {"labels": np.arange(6) % 3}
    for prefix, centre in (("", 0.0), ("flipped_", 100.0)):
        data[prefix + "mean"] = (chance.normal(size=(6, 4, 4, 2)) + centre).astype(np.float32)
        data[prefix + "std"] = np.full((6, 4, 4, 2), 0.5, np.float32)
    return data


def store(root, data, kind):
    if kind == "npz":
        np.savez(root / "moments.npz", **data)
        return str(root / "moments.npz")
    (root / "moments").mkdir()
    for name, array in data.items():
        np.save(root / "moments" / f"{name}.npy", array)
    return str(root / "moments")


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_latents_have_the_stored_moments(tmp_path, moments, kind):
    source = latents(store(tmp_path, moments, kind), scale=2.0, shift=1.0)
    np.testing.assert_allclose(source.images(np.arange(6)), (moments["mean"] - 1) * 2, rtol=1e-6)
    raw = source.coding.raw(source.images(np.arange(6)))
    np.testing.assert_allclose(raw, moments["mean"], rtol=1e-5, atol=1e-6)
    stream = list(itertools.islice(batches(source, batch_size=6, seed=0), 400))
    residuals = np.concatenate(
        [
            b["image"] - source.images(order.examples(0, np.arange(6) + 6 * n, 6))
            for n, b in enumerate(stream)
        ]
    )
    n = residuals.size
    assert abs(residuals.mean()) < 5 / np.sqrt(n)
    # std = 0.5 * scale; five standard errors.
    assert abs(residuals.std() - 1.0) < 5 / np.sqrt(2 * n)
    assert stream[0]["image"].dtype == np.float32


def test_latents_noise_and_flips_come_from_seed_and_position(tmp_path, moments):
    source = latents(store(tmp_path, moments, "npy"), scale=1.0)
    options = dict(seed=7, flip=True)
    one = np.concatenate(
        [b["image"] for b in itertools.islice(batches(source, batch_size=4, **options), 30)]
    )
    two = np.concatenate(
        [b["image"] for b in itertools.islice(batches(source, batch_size=24, **options), 5)]
    )
    np.testing.assert_array_equal(one, two)
    # Flipped moments are far away, so the flips show.
    np.testing.assert_array_equal(one.mean((1, 2, 3)) > 50, order.flips(7, np.arange(120)))
    again = pickle.loads(pickle.dumps(source))
    positions = np.arange(6)
    drawn = [s.draw(positions, positions=positions, seed=1, flip=True) for s in (source, again)]
    np.testing.assert_array_equal(*drawn)


def test_a_log_variance_is_the_same_as_its_deviation(tmp_path, moments):
    with_std = latents(store(tmp_path, moments, "npz"), scale=1.0)
    for prefix in ("", "flipped_"):
        moments[prefix + "logvar"] = 2 * np.log(moments.pop(prefix + "std"))
    with_logvar = latents(store(tmp_path, moments, "npy"), scale=1.0)
    drawn = [
        s.draw(np.arange(6), positions=np.arange(6), seed=0, flip=True)
        for s in (with_std, with_logvar)
    ]
    np.testing.assert_allclose(*drawn, rtol=1e-5)


def test_latents_refuses_missing_moments_and_flips_it_does_not_have(tmp_path, moments):
    plain = {k: v for k, v in moments.items() if not k.startswith("flipped_")}
    source = latents(store(tmp_path, plain, "npy"), scale=1.0)
    with pytest.raises(UsageError, match="data.flip"):
        batches(source, batch_size=2, seed=0, flip=True)
    cases = [
        ({k: v for k, v in moments.items() if k != "std"}, "std or logvar"),
        ({k: v for k, v in moments.items() if k != "flipped_mean"}, "flipped_mean"),
        ({k: v for k, v in moments.items() if k != "labels"}, "labels"),
        ({**moments, "std": moments["std"][:, :2]}, "source.std"),
        ({**moments, "labels": np.arange(5) % 3}, "one label a latent"),
        ({**moments, "labels": np.array([0, 1, 0, 1, 0, 3])}, "classes"),
    ]
    for n, (data, message) in enumerate(cases):
        np.savez(tmp_path / f"{n}.npz", **data)
        with pytest.raises(UsageError, match=message):
            latents(str(tmp_path / f"{n}.npz"), scale=1.0)
    with pytest.raises(UsageError, match="source.path"):
        latents(str(tmp_path / "none"), scale=1.0)


# --- tfds

PREPARE = """
import sys
# From an installed package, which is where a missing importlib_resources shows.
from jaxgen_tiny_package.tiny import JaxgenTiny
JaxgenTiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""

BUILDER = """
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def pixels(n, height, width):
    return np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)


class JaxgenTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "even": tfds.features.Image(shape=(6, 5, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
            "size": tfds.features.Scalar(np.int64),
        }))

    def _split_generators(self, manager):
        return {"train": self._some(12), "test": self._some(6), "poor": self._some(2)}

    def _some(self, count):
        for n in range(count):
            def encoded(height, width):
                file = io.BytesIO()
                Image.fromarray(pixels(n, height, width)).save(file, "png")
                file.seek(0)
                return file
            images = {"image": encoded(20 + n, 30), "even": encoded(6, 5)}
            yield n, {**images, "label": n % 3, "size": n}

    def _generate_examples(self):
        raise AssertionError("unused")

"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with a tiny data set, prepared without TensorFlow by a package's builder."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "code" / "jaxgen_tiny_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tiny.py").write_text(textwrap.dedent(BUILDER))
    data = root / "data"
    subprocess.run(
        [sys.executable, "-c", PREPARE, str(data)],
        check=True,
        cwd=root / "code",
        capture_output=True,
    )
    return str(data)


def tiny_pixels(n, height, width):
    return np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)


def unordered(rows):
    return sorted(r.tobytes() for r in rows)


def test_tfds_round_trip_without_tensorflow(prepared):
    source = tfds("jaxgen_tiny", data_dir=prepared, image_key="even")
    data = whole(source)
    assert source.class_names == ("ant", "bee", "cow") and source.shape == (6, 5, 3)
    # TFDS shuffles when it writes.
    assert unordered(data["image"]) == unordered([tiny_pixels(n, 6, 5) for n in range(12)])
    places = {tiny_pixels(n, 6, 5).tobytes(): n for n in range(12)}
    found = [places[image.tobytes()] % 3 for image in data["image"]]
    np.testing.assert_array_equal(source.labels, found)
    assert "tensorflow" not in sys.modules
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(whole(again)["image"], data["image"])


def test_tfds_resizes_images_of_any_size_as_folder_does(prepared):
    source = tfds("jaxgen_tiny", split="test", data_dir=prepared, image_size=8)
    expected = [
        np.asarray(centre_crop(Image.fromarray(tiny_pixels(n, 20 + n, 30)), 8)) for n in range(6)
    ]
    assert unordered(whole(source)["image"]) == unordered(expected)
    grey = tfds("jaxgen_tiny", split="test", data_dir=prepared, image_size=8, channels=1)
    np.testing.assert_array_equal(
        grey.images(np.arange(6)), to_channels(source.images(np.arange(6)), 1)
    )
    assert len(tfds("jaxgen_tiny", split="train[:75%]", data_dir=prepared, image_size=8)) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dataset="no_such_thing"), "source.dataset: got 'no_such_thing'"),
        (dict(split="val"), "source.split: got 'val'.*train"),
        (dict(split="poor"), "no image of 1 of 3 classes \\('cow'\\)"),
        (dict(image_key="imgae"), "Did you mean 'image'"),
        (dict(label_key="size"), "source.label_key: got 'size'.*ClassLabel"),
        (dict(image_key="label"), "source.image_key: got 'label'"),
        (dict(), "source.image_size: got None"),
        (dict(image_size=8, channels=2), "source.channels: got 2"),
    ],
)
def test_tfds_refuses_what_is_not_there(prepared, options, message):
    with pytest.raises(UsageError, match=message):
        tfds(**{"dataset": "jaxgen_tiny", "data_dir": prepared, **options})


def test_array_records_of_tfds_are_read_as_they_lie(prepared):
    known = tfds("jaxgen_tiny", data_dir=prepared, image_key="even")
    path = f"{prepared}/jaxgen_tiny/1.0.0/jaxgen_tiny-{{split}}.array_record-*"
    source = array_record(path, image="even")
    assert source.class_names == known.class_names == ("ant", "bee", "cow")
    np.testing.assert_array_equal(source.labels, known.labels)
    np.testing.assert_array_equal(whole(source)["image"], whole(known)["image"])
    assert len(array_record(path, split="test", image="even")) == 6
    numbers = array_record(path, image="even", label="size")
    np.testing.assert_array_equal(numbers.labels % 3, known.labels)


def test_tfds_downloads_what_is_not_prepared_only_on_request(prepared, tmp_path, monkeypatch):
    import tensorflow_datasets

    # The builder's code lies beside what it prepared.
    monkeypatch.syspath_prepend(f"{prepared}/../code")
    importlib.import_module("jaxgen_tiny_package.tiny")
    asked = dict(dataset="jaxgen_tiny", data_dir=str(tmp_path), image_key="even")
    with pytest.raises(UsageError, match="source.dataset: got 'jaxgen_tiny'.*source.download=True"):
        tfds(**asked)
    source = tfds(**asked, download=True)
    known = tfds("jaxgen_tiny", data_dir=prepared, image_key="even")
    np.testing.assert_array_equal(whole(source)["image"], whole(known)["image"])
    # Prepared once: nothing is asked for again.
    cls = tensorflow_datasets.core.DatasetBuilder
    monkeypatch.setattr(cls, "download_and_prepare", lambda self: 1 / 0)
    tfds(**asked, download=True)
    with pytest.raises(UsageError, match="source.download: jaxgen_tiny .*ZeroDivisionError"):
        tfds(**{**asked, "data_dir": str(tmp_path / "other")}, download=True)


def test_tfds_says_how_to_prepare_what_is_not_prepared(tmp_path):
    with pytest.raises(UsageError, match="source.dataset: got 'mnist'.*download_and_prepare"):
        tfds("mnist", data_dir=str(tmp_path))
