"""A model that travels: what leaves a workdir is whole, loads anywhere and makes the same."""

import json
import shutil
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
import yaml

import jaxgen
from jaxgen.api import evaluate, export, load, train
from jaxgen.errors import UsageError
from jaxgen.export.folder import bare
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.run import portable
from tests import base_run
from tests.running import assert_same_bits, run_here

LABELS = np.arange(6) % 3


@pytest.fixture(scope="module")
def model():
    return load(base_run.base())


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "digits"
    export(model, out, licence="apache-2.0")
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_it_makes_the_same_images_bit_for_bit(model, folder):
    theirs = load(folder)
    assert theirs.ema == model.ema and theirs.images_seen == model.images_seen
    assert theirs.setup.spec == model.setup.spec
    np.testing.assert_array_equal(theirs.sample(LABELS).images, model.sample(LABELS).images)


def test_an_average_is_chosen_and_no_other_is_there(tmp_path):
    model = load(base_run.base())
    model.params["params"] = jax.tree.map(lambda a: a + 1, model.params["params"])
    for asked, name in ((None, "half_life_500"), ("params", "params")):
        export(model, tmp_path / name, ema=asked)
        theirs = load(tmp_path / name)
        assert list(theirs.params) == [name] and theirs.ema == name
        assert_same_bits(theirs.params[name], jax.device_get(model.params[name]))
    with pytest.raises(UsageError, match="--ema"):
        theirs.weights("half_life_500")
    with pytest.raises(UsageError, match="--ema: got 'other'"):
        export(model, tmp_path / "n", ema="other")
    assert not (tmp_path / "n").exists()


def test_every_command_takes_it_in_the_place_of_a_workdir(copy, tmp_path):
    for command in (
        ["sample", "--per_label", "1", "--out", str(tmp_path / "a.png")],
        ["classify", "--limit", "4"],
        ["export", "--out", str(tmp_path / "again")],
    ):
        code, _, err = run_here(command[0], "--workdir", str(copy), *command[1:])
        assert code == 0, err
    assert (copy / "receipts" / "classify_test_limit_4.json").is_file()
    # What was measured of it since goes into the next export, not into this one.
    with pytest.raises(UsageError, match="classify_test_limit_4.*export it again|Export it again"):
        portable.verify(copy)


def test_it_is_no_run_to_train_on_but_one_to_start_from(copy, tmp_path):
    arguments = ["train", "--config", "tests/tiny.py", "--workdir"]
    code, _, err = run_here(*arguments, str(copy))
    assert code == 2 and "--init_from" in err and not (copy / "checkpoints").exists()
    config = base_run.config("train.images=16", "evaluate.at_end=False", "classify.at_end=False")
    train(config, tmp_path / "run", init_from=str(copy))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["recorded"]
    assert str(copy) in json.dumps(recorded["start"]), recorded["start"]


def test_receipts_come_along_and_the_card_tells_them(model, tmp_path):
    workdir = shutil.copytree(base_run.base(), tmp_path / "run")
    found = evaluate(model, workdir, samples=80, scores=("fid",))["receipts"][0]["scores"][0]
    out = tmp_path / "named"
    export(load(workdir), out, licence="mit")
    assert [p.name for p in (out / "receipts").iterdir()]
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit" and head["library_name"] == "jaxgen"
    (entry,) = head["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "named" and result["dataset"]["type"] == "digits"
    assert result["metrics"][0]["type"] == found["name"]
    assert result["metrics"][0]["value"] == found["value"]
    assert "samples/final_samples.png" in text and (out / "samples/final_samples.png").is_file()
    assert "15,568 parameters" in text and "jaxgen sample --workdir named" in text


def test_no_path_of_the_machine_leaves_it(tmp_path):
    workdir = shutil.copytree(base_run.base(), tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["start"] = {"workdir": "/home/somebody/runs/secret"}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "receipts").mkdir()
    (workdir / "receipts" / "a.json").write_text(json.dumps({"data": {"path": "~/mine/images"}}))
    export(load(workdir), tmp_path / "out")
    text = "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json"))
    assert "somebody" not in text and "~/mine" not in text and "secret" in text
    kept = {"a": "relative/path", "b": ["label", "/"], "c": 3, "d": None}
    assert bare(kept) == kept | {"b": ["label", ""]}


@pytest.mark.parametrize("name", ["model.safetensors", "samples/final_samples.png"])
def test_a_flipped_bit_is_found(name, copy):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=Path(name).name):
        portable.verify(copy)
    if name == portable.FILE:
        with pytest.raises(UsageError, match="damaged"):
            load(copy)


def test_other_parameters_than_the_config_tells_of_are_found(copy, tmp_path):
    export(load(base_run.base()), tmp_path / "other", ema="params")
    other = base_run.write(tmp_path / "w", seed=1)
    export(load(other), tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / portable.FILE, copy / portable.FILE)
    with pytest.raises(UsageError, match="not the parameters that config.json tells of"):
        load(copy)


def test_a_card_is_for_people_to_change(copy):
    (copy / "README.md").write_text("# Mine\n")
    portable.verify(copy)


def test_codes_travel_with_what_decodes_them(tmp_path):
    from tests.run.test_tokenize import TINY, second_stage

    config = jaxgen.api.ml_collections.ConfigDict
    tokenizer, run = tmp_path / "kl", tmp_path / "run"
    train(config({**TINY, "train": dict(images=16)}), tokenizer)
    jaxgen.api.tokenize(load(tokenizer), tokenizer, tokenizer / "codes")
    train(config(second_stage(tokenizer / "codes")), run)
    model = load(run)
    expected = model.sample(LABELS).images
    # Wherever the tokenizer was said to be.
    place = shutil.move(tokenizer, tmp_path / "moved")
    model = load(run, tokenizer=place)
    export(model, tmp_path / "out")
    export(model, tmp_path / "a.jaxexport", platforms=["cpu"])
    program = jax.export.deserialize(bytearray((tmp_path / "a.jaxexport").read_bytes()))
    index, labels = np.arange(len(LABELS), dtype=np.uint32), np.int32(LABELS)
    pixels = np.asarray(program.call(np.uint32(0), index, labels)).astype(int)
    # Decoded, by one device in the place of eight.
    assert np.abs(pixels - quantise(expected)).max() <= 1 and pixels.std() > 5
    shutil.rmtree(place)
    shutil.rmtree(run)
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(moved).sample(LABELS).images, expected)
    portable.verify(moved)
    assert str(tmp_path) not in (Path(moved) / "config.json").read_text()


def test_what_cannot_be_exported_says_so(model, folder, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    for out, options, message in (
        (full, {}, "--out.*a new folder, or an empty one"),
        (tmp_path / "a.safetensors", {}, "--out.*a new folder, or NAME.jaxexport or NAME.onnx"),
        (tmp_path / "b", dict(licence="My own!"), "--license.*apache-2.0"),
        (tmp_path / "b", dict(platforms=["cpu"]), "--platforms"),
        (tmp_path / "b.jaxexport", dict(licence="mit"), "--license"),
    ):
        with pytest.raises(UsageError, match=message):
            export(model, out, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
    code, _, err = run_here("export", "--workdir", str(tmp_path / "none"), "--out", "x")
    assert code == 2 and "--workdir" in err
    (folder.parent / "half").mkdir(exist_ok=True)
    shutil.copy(folder / portable.FILE, folder.parent / "half")
    with pytest.raises(UsageError, match="config.json"):
        load(folder.parent / "half")
