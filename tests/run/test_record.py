"""A model needs no data: what a workdir says of them, and what still asks for them."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxgen.run.record import recorded
from jaxgen.run.setup import TOP
from tests.running import run_here, train_arguments


def write_folder(folder, classes, each=6):
    """Digits as PNG files, the label of a class its place in `classes`."""
    data = load_digits()
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in np.flatnonzero(data.target == label)[:each]:
            pixels = (data.images[i] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def arguments(workdir, data, images=32):
    source = dict(name="folder.folder", path=str(data), image_size=8, channels=1)
    return train_arguments(workdir, f"data.source={source!r}", f"train.images={images}")


def answer(*words):
    code, out, err = run_here(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(*words):
    code, out, err = run_here(*words)
    assert code == 2 and not out and err.count("jaxgen: error") == 1, (code, out, err)
    return err


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """(workdir, folder of data, samples before): a run moved away from data that are gone."""
    root = tmp_path_factory.mktemp("record")
    data = write_folder(root / "data", ("cat", "cow", "dog"))
    answer(*arguments(root / "run", data))
    answer("sample", "--workdir", str(root / "run"), "--out", str(root / "before.npz"))
    gone = data.rename(root / "gone")
    workdir = (root / "run").rename(root / "moved")
    return workdir, gone, root / "before.npz"


def test_samples_are_the_same_where_the_data_are_gone(moved, tmp_path):
    workdir, _, before = moved
    answer("sample", "--workdir", str(workdir), "--out", str(tmp_path / "after.npz"))
    with np.load(before) as a, np.load(tmp_path / "after.npz") as b:
        for name in ("images", "labels"):
            np.testing.assert_array_equal(a[name], b[name])
    assert recorded(workdir)["spec"]["classes"] == ["cat", "cow", "dog"]
    assert "recorded" not in TOP  # so no config can set it


def test_the_report_names_the_rows_of_its_grid(moved):
    page = (moved[0] / "report.html").read_text()
    grids = page.split("<h2>Samples</h2>")[1].split("<h2>")[0].split("<figure")[1:]
    # Of samples, and of real images beside them.
    for grid in grids:
        assert re.findall("<span[^>]*>(.*?)</span>", grid) == ["cat", "cow", "dog"]
    assert len(grids) == 2 and "a row a class, seed 0" in grids[0] and "real images" in grids[1]


def test_labels_are_asked_for_by_name(moved, tmp_path):
    workdir, _, before = moved
    out = tmp_path / "dogs.npz"
    answer("sample", "--workdir", str(workdir), "--labels", "dog:2,1", "--out", str(out))
    assert np.load(out)["labels"].tolist() == [2, 2] + [1] * 8
    err = refusal("sample", "--workdir", str(workdir), "--labels", "dogs")
    assert "Did you mean 'dog'" in err and "cow" in err


def test_what_needs_the_data_says_that_they_are_gone(moved):
    workdir, _, _ = moved
    for command in ("classify", "evaluate"):
        assert "source.path" in refusal(command, "--workdir", str(workdir))


def test_given_images_are_classified_by_the_names_of_their_folders(moved, tmp_path):
    workdir, gone, _ = moved
    whole = answer("classify", "--workdir", str(workdir), "--images", str(gone))
    assert whole["images"] == 18 == len(whole["names"]) and 0 <= whole["accuracy"] <= 1
    # Two classes of three, in an order of their own: the names say which are which.
    two = tmp_path / "two"
    for name in ("dog", "cow"):
        shutil.copytree(gone / name, two / name)
    found = answer("classify", "--workdir", str(workdir), "--images", str(two))
    wanted = ["cow"] * 6 + ["dog"] * 6
    assert found["accuracy"] == np.mean(
        [a == b for a, b in zip(found["names"], wanted, strict=True)]
    )
    (two / "dog").rename(two / "cat ")
    err = refusal("classify", "--workdir", str(workdir), "--images", str(two))
    assert "Did you mean 'cat'" in err
    flat = shutil.copytree(gone / "dog", tmp_path / "flat")
    blind = answer("classify", "--workdir", str(workdir), "--images", str(flat))
    assert (
        "accuracy" not in blind
        and len(blind["labels"]) == 6
        and set(blind["names"]) <= {"cat", "cow", "dog"}
    )


def test_given_images_are_judged_as_the_same_half_is(moved, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"]["path"] = str(moved[1])
    (workdir / "config.json").write_text(json.dumps(config))
    same = {"classify": ("accuracy", "nll", "ece", "calls_per_image"), "likelihood": ("nats",)}
    for command, names in same.items():
        half = answer(command, "--workdir", str(workdir), "--split", "train")
        given = answer(command, "--workdir", str(workdir), "--images", str(moved[1]))
        assert half["images"] == given["images"] == 18 and given["given"]["count"] == 18
        # The order of a sum is another.
        assert [given[n] for n in names] == pytest.approx([half[n] for n in names], rel=1e-6)
    assert np.mean(given["nats_of_each"]) == pytest.approx(given["nats"])
    out = str(tmp_path / "x.npz")
    found = answer("encode", "--workdir", str(workdir), "--encoder", "flat", "--out", out)
    assert found["counts"] == {"train": 18}
    flat = str(moved[1] / "dog")
    assert "with labels" in refusal("likelihood", "--workdir", str(workdir), "--images", flat)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (dict(images=np.zeros((2, 9, 9, 1), np.uint8)), ["(9, 9, 1)", "(8, 8, 1)"]),
        (
            dict(images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.array([0, 3])),
            ["--images: labels", "0 to 2"],
        ),
        (dict(features=np.eye(3)), ["--images", "for a model of images"]),
    ],
)
def test_given_images_that_do_not_fit_are_refused(moved, tmp_path, made, words):
    file = tmp_path / "given.npz"
    np.savez(file, **made)
    err = refusal("classify", "--workdir", str(moved[0]), "--images", str(file))
    assert all(word in err for word in words), err
    both = ("--images", str(file), "--split", "train")
    assert "one of the two" in refusal("classify", "--workdir", str(moved[0]), *both)


def test_going_on_with_other_classes_is_refused_with_both_lists(moved, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    renamed = write_folder(tmp_path / "renamed", ("cat", "cow", "wolf"))
    err = refusal(*arguments(workdir, renamed, images=64))
    assert "cat, cow, wolf" in err and "cat, cow, dog" in err
    answer(*arguments(workdir, moved[1], images=64))  # the same data elsewhere
    # Nor is the model measured on data of other classes.
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"]["path"] = str(renamed)
    (workdir / "config.json").write_text(json.dumps(config))
    err = refusal("classify", "--workdir", str(workdir), "--split", "train")
    assert "cat, cow, wolf" in err and "cat, cow, dog" in err


def test_a_test_half_may_lack_classes_and_has_no_others(moved, tmp_path):
    workdir, data = shutil.copytree(moved[0], tmp_path / "run"), tmp_path / "data"
    write_folder(data / "test", ("cat", "cow"), each=2)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"]["path"] = str(data)
    (workdir / "config.json").write_text(json.dumps(config))
    assert answer("classify", "--workdir", str(workdir))["images"] == 4
    before = json.loads((workdir / "receipts" / "classify_test.json").read_text())
    # Without the first class, the others are still what they are called.
    shutil.rmtree(data / "test" / "cat")
    after = answer("classify", "--workdir", str(workdir))
    assert after["images"] == 2 and before["classes"] == after["classes"] == ["cat", "cow", "dog"]
    (data / "test" / "cow").rename(data / "test" / "emu")
    err = refusal("classify", "--workdir", str(workdir))
    assert "emu" in err and "cat, cow, dog" in err


def test_a_run_on_a_union_of_sources_resumes_and_then_needs_none_of_them(moved, tmp_path):
    other = write_folder(tmp_path / "other", ("dog", "cat", "cow"), each=4)
    folder = dict(name="folder.folder", image_size=8, channels=1)
    source = dict(
        name="union.union",
        sources=(folder | dict(path=str(moved[1])), folder | dict(path=str(other))),
        weights=(3, 1),
    )
    run = tmp_path / "run"
    words = train_arguments(run, f"data.source={source!r}", "data.workers=1", "data.prefetch=1")
    # Resumed from JSON, where tuples are lists: the same run.
    for images in (16, 32):
        answer(*words, f"--config.train.images={images}", f"--config.checkpoint.every={images}")
    assert "config changed" not in refusal(*words, "--config.data.source=digits.digits")
    assert recorded(run)["spec"]["columns"] == {"group": {"shape": [], "dtype": "int32"}}
    lost = other.rename(tmp_path / "lost")
    answer("sample", "--workdir", str(run), "--labels", "cow", "--out", str(tmp_path / "x.npz"))
    found = dict(source, sources=(source["sources"][0], folder | dict(path=str(lost))))
    answer(*words, f"--config.data.source={found!r}", "--config.train.images=32")
    err = refusal(*words, f"--config.data.source={dict(found, weights=(1, 1))!r}")
    assert "cannot change" in err and "weights" in err


def test_a_run_without_a_record_opens_its_data_or_says_both(moved, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    del config["recorded"]
    (workdir / "config.json").write_text(json.dumps(config))
    err = refusal("sample", "--workdir", str(workdir))
    assert "source.path" in err and "before runs recorded" in err
    config["data"]["source"]["path"] = str(moved[1])
    (workdir / "config.json").write_text(json.dumps(config))
    answer("sample", "--workdir", str(workdir), "--out", str(tmp_path / "x.npz"))


def test_where_the_data_are_now_can_be_said_to_every_command_that_asks_for_them(moved):
    workdir, gone, _ = moved
    now = f"--config.data.source.path={gone}"
    assert "source.path" in refusal("classify", "--workdir", str(workdir), "--split", "train")
    words = ("--workdir", str(workdir), "--split", "train", "--limit", "2", now)
    assert answer("classify", *words)["images"] == 2
