"""The same images in every form of data are the same examples; what is wrong is said plainly."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import batches
from jaxgen.data.array_record import array_record, write_records
from jaxgen.data.arrays import arrays
from jaxgen.data.encoded import braced
from jaxgen.data.folder import centre_crop, folder
from jaxgen.data.hf import hf
from jaxgen.data.holdout import held_out
from jaxgen.data.pixels import png
from jaxgen.data.webdataset import webdataset
from jaxgen.errors import UsageError

NAMES = ("ant", "bee 2", "bee 10")
LABELS = np.arange(12) % 3
# As a folder of classes has its files, by their names as text.
ORDER = np.array(sorted(range(12), key=lambda n: (NAMES[LABELS[n]], n)))
SIZE = 16


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No network is asked, and what `datasets` keeps goes with the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Read when the library was imported, which other tests may have done.
        with contextlib.suppress(ImportError, AttributeError):
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


def pixels(n: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)


def put_folder(root, images):
    for i, n in enumerate(ORDER):
        (root / NAMES[LABELS[n]]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[LABELS[n]] / f"{i:03d}.png").write_bytes(png(images[n]))
    return folder(str(root), image_size=SIZE)


def put_hf(root, images):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    rows = {
        "image": [{"bytes": png(images[n]), "path": None} for n in ORDER],
        "label": LABELS[ORDER].tolist(),
    }
    root.mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(root / "train-00000-of-00001.parquet"))
    return hf(str(root), image_size=SIZE)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def put_tars(root, images):
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard:03d}.tar", "w") as tar:
            for i, n in list(enumerate(ORDER))[6 * shard : 6 * shard + 6]:
                add(tar, f"./{i:04d}.PNG", png(images[n]))
                add(tar, f"./{i:04d}.txt", NAMES[LABELS[n]].encode() + b"\n")
    return webdataset(str(root / "shard-{000..001}.tar"), label="txt", image_size=SIZE)


def put_records(root, images):
    root.mkdir()
    write_records(root / "train.array_record", ((png(images[n]), LABELS[n]) for n in ORDER), NAMES)
    return array_record(str(root / "{split}.array_record"), image_size=SIZE)


def put_arrays(root, images):
    root.mkdir()
    np.savez(
        root / "a.npz",
        images=np.stack([images[n] for n in ORDER]),
        labels=LABELS[ORDER],
        class_names=np.array(NAMES),
    )
    return arrays(str(root / "a.npz"))


PUT = dict(hf=put_hf, webdataset=put_tars, array_record=put_records, arrays=put_arrays)


@pytest.mark.parametrize("form", PUT)
def test_every_form_gives_the_batches_of_a_folder_bit_for_bit(form, tmp_path):
    images = [pixels(n) for n in range(12)]
    known = put_folder(tmp_path / "folder", images)
    source = PUT[form](tmp_path / form, images)
    assert source.class_names == known.class_names == NAMES and source.shape == known.shape
    assert (source.dtype, source.levels) == (known.dtype, known.levels)
    for each in (source, pickle.loads(pickle.dumps(source))):
        pairs = [batches(s, batch_size=5, seed=3, flip=True) for s in (known, each)]
        for a, b in itertools.islice(zip(*pairs, strict=True), 6):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    # And the same images are held out.
    assert held_out(source, 0.25, 0)[2] == held_out(known, 0.25, 0)[2]


@pytest.mark.parametrize("form", ["hf", "webdataset", "array_record"])
def test_images_of_any_size_are_resized_and_cropped_as_a_folder_does(form, tmp_path):
    images = [pixels(n, 17 + n, 40 - n) for n in range(12)]
    source = PUT[form](tmp_path / form, images)
    expected = [np.asarray(centre_crop(Image.fromarray(images[n]), SIZE)) for n in ORDER]
    np.testing.assert_array_equal(source.images(np.arange(12)), expected)
    kept = {
        "hf": lambda: hf(str(tmp_path / form)),
        "webdataset": lambda: webdataset(str(tmp_path / form / "*.tar"), label="txt"),
        "array_record": lambda: array_record(str(tmp_path / form / "train.array_record")),
    }[form]()
    assert kept.shape == (17, 40, 3)
    with pytest.raises(UsageError, match="37x20.*allowed: 40x17.*source.image_size"):
        kept.images(np.arange(12))


@pytest.mark.parametrize("form", ["hf", "webdataset", "array_record"])
def test_an_entry_that_is_no_image_is_named(form, tmp_path, monkeypatch):
    good = png
    monkeypatch.setattr(
        "tests.data.test_data_formats.png",
        lambda array: b"no image" if (array == pixels(4)).all() else good(array),
    )
    source = PUT[form](tmp_path / form, [pixels(n) for n in range(12)])
    place = ORDER.tolist().index(4)
    named = {"hf": f"row {place} of", "webdataset": f"{place:04d} in .*shard-00{place // 6}.tar"}
    with pytest.raises(UsageError, match=named.get(form, f"record {place} of .*train")):
        source.images(np.arange(12))
    source.images(np.array([0]))


# --- Hugging Face


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A parquet file of eight rows with columns of every kind."""
    datasets = pytest.importorskip("datasets")
    images = [pixels(n, 6, 5) for n in range(8)]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "raw": datasets.Value("binary"),
            "array": datasets.Array3D((6, 5, 3), "uint8"),
            "fine": datasets.Value("int64"),
            "kind": datasets.Value("string"),
            "holes": datasets.Value("string"),
            "half": datasets.Value("float32"),
        }
    )
    rows = {
        "img": [{"bytes": png(image), "path": None} for image in images],
        "raw": [png(image) for image in images],
        "array": images,
        "fine": [n % 2 for n in range(8)],
        "kind": ["b10", "b9"] * 4,
        "holes": ["a"] * 7 + [None],
        "half": [0.5] * 8,
    }
    root = tmp_path_factory.mktemp("table")
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(root / "some.parquet"))
    datasets.DatasetDict({"train": made, "test": made.select(range(4))}).save_to_disk(
        str(root / "saved")
    )
    return root


@pytest.mark.parametrize("column", ["img", "raw", "array"])
def test_columns_of_images_of_bytes_and_of_arrays_are_the_same_pictures(table, column):
    source = hf(str(table / "some.parquet"), image=column, label="fine")
    np.testing.assert_array_equal(source.images(np.arange(8)), [pixels(n, 6, 5) for n in range(8)])
    assert source.class_names == ("0", "1")
    grey = hf(str(table / "*.parquet"), image=column, label="fine", channels=1)
    assert grey.images(np.arange(2)).shape == (2, 6, 5, 1)


def test_labels_may_be_names_numbers_or_nothing(table):
    file = str(table / "some.parquet")
    source = hf(file, image="img", label="kind")
    assert source.class_names == ("b9", "b10") and source.labels.tolist() == [1, 0] * 4
    assert hf(file, image="img", label=None).class_names == ("all",)
    named = hf(file, image="img", label="fine", class_names=("x", "y"))
    assert named.class_names == ("x", "y")
    assert len(hf(file, split="train[:75%]", image="img", label="kind")) == 6


def test_what_save_to_disk_wrote_has_its_splits(table):
    saved = str(table / "saved")
    assert [len(hf(saved, split=s, image="img", label="fine")) for s in ("train", "test")] == [8, 4]
    with pytest.raises(UsageError, match="source.split: got 'val'.*test, train"):
        hf(saved, split="val", image="img")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "source.image: got 'image'; allowed: array, fine, half, holes, img, kind, raw"),
        (dict(image="img"), "source.label: got 'label'"),
        (dict(image="fine", label="kind"), "source.image: got 'fine'.*a column of images"),
        (dict(image="img", label="holes"), "source.label: got 'None in row 7"),
        (dict(image="img", label="half"), "source.label: got '0.5 in row 0"),
        (dict(image="img", label="fine", class_names=("a",)), r"\[0, 1\)"),
        (dict(image="img", label="kind", class_names=("b9", "c")), "source.class_names: got 'b10'"),
        (dict(image="img", label="fine", split="test"), "source.split: got 'test'"),
        (dict(image="img", label="fine", channels=5), "source.channels: got 5"),
        (dict(image="img", label="fine", image_size=0), "source.image_size: got 0"),
        (dict(path="./none"), "source.path: got './none'.*exist"),
        (dict(path="no-such/data-set"), "source.path: got 'no-such/data-set'"),
    ],
)
def test_hf_refuses_what_is_not_there(table, options, message):
    with pytest.raises(UsageError, match=message):
        hf(**{"path": str(table / "some.parquet"), **options})


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r'pip install "jaxgen\[hf\]"'):
        hf("some/thing")


# --- tars


def tar_of(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            add(tar, name, data)
    return str(path)


def test_braces_expand_as_a_shell_has_them():
    assert braced("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert braced("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    assert braced("plain") == ["plain"] and braced("{one}") == ["{one}"]


def test_tars_are_read_as_webdataset_reads_them(tmp_path):
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(tmp_path / "a.tar")) as sink:
        for n in range(6):
            record = {"__key__": f"sub/{n:03d}" if n % 2 else f"{n:03d}", "cls": n % 3}
            sink.write(record | {"png": pixels(n, 6, 5), "json": {"of": {"n": n}, "y": n % 2}})
    theirs = library.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8")
    theirs = [(s["png"], s["cls"]) for s in theirs if "png" in s]
    source = webdataset(str(tmp_path / "a.tar"), image="png", label="cls")
    np.testing.assert_array_equal(source.images(np.arange(len(source))), [i for i, _ in theirs])
    assert source.labels.tolist() == [y for _, y in theirs]


def test_labels_of_tars_are_numbers_names_or_a_field(tmp_path):
    files = []
    for n in range(4):
        said = json.dumps({"y": n % 2, "name": f"c{n % 2}"}).encode()
        files += [
            (f"d/{n}.png", png(pixels(n))),
            (f"d/{n}.json", said),
            (f"d/._{n}.png", b"litter"),
        ]
        files += [(f"d/{n}.cls", b" 1\n" if n % 2 else b"0"), (f"d/{n}.seg.png", png(pixels(9)))]
    path = tar_of(tmp_path / "a.tar", files)
    for label, names in (("cls", ("0", "1")), ("json:y", ("0", "1")), ("json:name", ("c0", "c1"))):
        source = webdataset(path, label=label)
        assert source.class_names == names and source.labels.tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(source.images(np.arange(4)), [pixels(n) for n in range(4)])
    assert webdataset(path, label=None).class_names == ("all",)
    assert webdataset(path, class_names=("no", "yes")).class_names == ("no", "yes")
    masks = webdataset(path, image="seg.png").images(np.arange(1))
    np.testing.assert_array_equal(masks[0], pixels(9))
    for label, message in (
        ("txt", "source.label: d/0 in .*: got 'txt'; allowed: cls, json, png, seg.png"),
        ("json:z", "source.label: d/0 in .*got 'z'.*name, y"),
        ("json", "source.label: got 'json'.*json:FIELD"),
        ("png", "source.label.*text, or JSON"),
    ):
        with pytest.raises(UsageError, match=message):
            webdataset(path, label=label)


def test_tars_that_cannot_be_read_by_parts_are_refused(tmp_path):
    path = tar_of(tmp_path / "a.tar", [("0.png", png(pixels(0))), ("0.cls", b"0")])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:700])
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(path, "0.png")
    (tmp_path / "text.tar").write_bytes(b"hello" * 400)
    for name in ("cut.tar", "a.tar.gz", "text.tar"):
        with pytest.raises(UsageError, match=f"source.path: got '.*{name}.*whole, uncompressed"):
            webdataset(str(tmp_path / name))
    with pytest.raises(UsageError, match="source.split: got 'test'"):
        webdataset(path, split="test")
    with pytest.raises(UsageError, match="b-000.tar.*a file that exists"):
        webdataset(str(tmp_path / "b-{000..002}.tar"))
    both = tar_of(tmp_path / "b.tar", [("0.png", b"x"), ("0.jpg", b"x"), ("0.cls", b"0")])
    with pytest.raises(UsageError, match="source.image: got None; allowed: png or jpg.*0 in"):
        webdataset(both)
    words = tar_of(tmp_path / "w.tar", [("0.png", png(pixels(0))), ("0.cls", b"cat")])
    with pytest.raises(UsageError, match='source.label.*cat.*label="txt"'):
        webdataset(words)
    none = tar_of(tmp_path / "n.tar", [("0.txt", b"cat")])
    with pytest.raises(UsageError, match="tars with images"):
        webdataset(none)


# --- array records


def test_records_that_are_something_else_are_refused(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    def put(name, *records):
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return str(tmp_path / name)

    with pytest.raises(UsageError, match="record 0 of .*tf.train.Example"):
        array_record(put("text.array_record", b"\xff\xff\xffhello"))
    with pytest.raises(UsageError, match="files with records"):
        array_record(put("empty.array_record"))
    (tmp_path / "junk.array_record").write_bytes(b"junk" * 100)
    with pytest.raises(UsageError, match="source.path: got '.*junk.array_record"):
        array_record(str(tmp_path / "junk.array_record"))
    file = tmp_path / "good" / "a.array_record"
    file.parent.mkdir()
    write_records(file, [(png(pixels(n)), n) for n in range(2)], ("x", "y"))
    for options, message in (
        (dict(image="picture"), "source.image: got 'picture'; allowed: image, label"),
        (dict(label="y"), "source.label: got 'y'; allowed: image, label"),
        (dict(label="image"), "source.label"),
        (dict(image="label"), "source.image"),
        (dict(class_names=("a",)), r"got 1; allowed: integers in \[0, 1\)"),
        (dict(split="test"), "source.split: got 'test'"),
    ):
        with pytest.raises(UsageError, match=message):
            array_record(str(file), **options)
    with pytest.raises(UsageError, match="label.labels.txt.*the same classes"):
        write_records(file, [(png(pixels(0)), 0)], ("z",))
    with pytest.raises(UsageError, match="names of one line"):
        write_records(tmp_path / "b.array_record", [], ("z\nz",))
    assert array_record(str(file), label=None).class_names == ("all",)
