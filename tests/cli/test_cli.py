"""The command line: what it prints, what it refuses, and that nothing is lost."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli import main
from jaxgen.cli.sample import parse_labels
from jaxgen.data.folder import centre_crop
from jaxgen.errors import UsageError
from tests.running import run, start, train_arguments, wait_for


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    arguments = train_arguments(workdir, "train.sample_every=3200", "log.tensorboard=True")
    assert main([*arguments, "--json"]) == 0
    return workdir


def lines(capsys) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_everything_a_run_writes_is_in_its_workdir(trained):
    for name in ("config.json", "checkpoints", "metrics.jsonl", "tensorboard", "samples"):
        assert (trained / name).exists(), name
    report = json.loads((trained / "report.json").read_text())
    assert report["images_seen"] == 6400 and report["timings"]["compile"] > 0
    page = (trained / "report.html").read_text()
    assert "data:image/png;base64" in page and 'src="http' not in page
    assert list((trained / "samples").glob("*3200.png"))


def test_json_prints_one_object_and_nothing_else(trained, capsys, tmp_path):
    out_file = tmp_path / "grid.png"
    arguments = ["--labels", "0-2", "--per_label", "3", "--seed", "1", "--out", str(out_file)]
    assert main(["sample", "--workdir", str(trained), *arguments, "--json"]) == 0
    out, err = lines(capsys)
    found = json.loads(out)
    # Euler, 3 steps, guidance 1.5: two branches a step.
    assert found["images"] == 9 and found["network_calls"] == 6
    assert Image.open(out_file).size[0] > 3 * 32
    assert "images/s" in err


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "ddim"])
def test_image_i_of_seed_s_is_the_same_at_any_batch_size(trained, tmp_path, solver):
    base = ["sample", "--workdir", str(trained), "--labels", "3:5,8:6", "--seed", "7"]
    images = []
    for size in ("11", "4", "1"):
        out = tmp_path / f"{solver}{size}.npz"
        options = ["--batch_size", size, "--out", str(out), "--solver", solver]
        assert main([*base, *options]) == 0
        images.append(np.load(out)["images"])
    # Same noise and key; float32 sums are ordered by the batch's shape.
    np.testing.assert_allclose(images[0], images[1], atol=2e-5)
    np.testing.assert_allclose(images[0], images[2], atol=2e-5)
    assert np.abs(images[0][:5] - images[0][6:11]).max() > 0.1


def test_samples_for_adms_evaluator_and_of_another_size(trained, tmp_path, capsys):
    base = ["sample", "--workdir", str(trained), "--labels", "3:2,8:3", "--json"]
    assert main([*base, "--out", str(tmp_path / "ours.npz")]) == 0
    sized = ["--npz", "adm", "--image_size", "12", "--out", str(tmp_path / "big.npz")]
    capsys.readouterr()
    outs = ["--out", str(tmp_path / "grid.png"), "--out", str(tmp_path / "many")]
    assert main([*base, *sized, *outs]) == 0
    found = json.loads(lines(capsys)[0])
    assert found["image_size"] == 12 and "bicubic" in found["resize"]
    assert main([*base, "--npz", "adm", "--out", str(tmp_path / "adm.npz")]) == 0
    ours, adm, big = (np.load(tmp_path / f"{name}.npz") for name in ("ours", "adm", "big"))
    assert sorted(adm.files) == ["arr_0", "arr_1"] and adm["arr_1"].tolist() == [3, 3, 8, 8, 8]
    # The bytes of a PNG, as Pillow rounds half up of floats in 0..255; grey as three channels.
    pixels = np.clip(np.floor((ours["images"].astype(np.float64) + 1) * 127.5 + 0.5), 0, 255)
    np.testing.assert_array_equal(adm["arr_0"], np.repeat(pixels, 3, -1).astype(np.uint8))
    expected = [np.asarray(centre_crop(Image.fromarray(i[..., 0]), 12)) for i in adm["arr_0"]]
    np.testing.assert_array_equal(big["arr_0"][..., 0], expected)
    first = np.asarray(Image.open(tmp_path / "many" / "000000_label3.png"))
    np.testing.assert_array_equal(first, expected[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--npz", "adm"], "--npz: got 'adm'; allowed: with --out x.npz"),
        (["--npz", "edm"], "invalid choice: 'edm'"),
        (["--image_size", "0"], "--image_size: got 0"),
        (["--image_size", "8", "--codes"], "--image_size: got 8; allowed: pixels >= 1, of images"),
        (["--npz", "adm", "--codes"], "--npz: got 'adm'"),
    ],
)
def test_forms_that_samples_cannot_have_are_refused(options, message, trained, tmp_path, capsys):
    ended = 0
    try:
        ended = main(["sample", "--workdir", str(trained), "--per_label", "1", *options])
    except SystemExit as error:  # argparse's own
        ended = error.code
    assert ended == 2 and message in lines(capsys)[1]


def test_autoguidance_moves_away_from_the_worse_average(trained, tmp_path):
    base = ["sample", "--workdir", str(trained), "--labels", "3:4", "--ema", "half_life_500"]
    images = {}
    for name, extra in {
        "plain": ["--guidance", "1"],
        "itself": ["--guidance", "3", "--weak_ema", "half_life_500"],
        "weak": ["--guidance", "3", "--weak_ema", "std_0.100"],
    }.items():
        out = tmp_path / f"{name}.npz"
        assert main([*base, *extra, "--out", str(out)]) == 0
        images[name] = np.load(out)["images"]
    # Nothing to move away from: the same prediction twice.
    np.testing.assert_allclose(images["itself"], images["plain"], atol=1e-4)
    assert np.abs(images["weak"] - images["plain"]).max() > 1e-3


def test_folder_of_pngs_names_index_and_label(trained, tmp_path):
    out = tmp_path / "many"
    arguments = ["sample", "--workdir", str(trained), "--labels", "4:2,1:1", "--out", str(out)]
    assert main(arguments) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["000000_label4.png", "000001_label4.png", "000002_label1.png"]
    assert Image.open(out / names[0]).size == (8, 8)


def corners(images):
    """Features of one's own: four pixels near the middle."""
    return images[:, 3:5, 3:5, 0].reshape(len(images), -1)


def test_evaluate_writes_a_receipt_with_every_score(trained, capsys):
    arguments = ["--samples", "120", "--guidance", "1.5", "--ema", "std_0.100", "--json"]
    arguments += ["--features", "tests.cli.test_cli:corners"]
    assert main(["evaluate", "--workdir", str(trained), *arguments]) == 0
    found = json.loads(lines(capsys)[0])["receipts"][0]
    asked = "ema_std-0.100_samples_120_features_tests.cli.test-cli-corners"
    stored = json.loads((trained / "receipts" / f"evaluate_guidance_1.5_{asked}.json").read_text())
    assert stored == found
    names = {s["name"]: s for s in found["scores"]}
    plain = ("kid", "precision_k3", "recall_k3", "density_k5", "inception_score")
    for name in ("fd_classifier", *(f"{name}_classifier" for name in plain)):
        assert np.isfinite(names[name]["value"]) and np.isfinite(names[name]["floor"])
    assert names["fd_corners"]["features"] == "corners" and names["recall_k3_corners"]["k"] == 3
    for name in ("coverage_k5_classifier", "accuracy_classifier", "memorised_p1"):
        assert 0 <= names[name]["value"] <= 1
    sampling = found["sampling"]
    assert sampling["nfe"] == 6 and sampling["ema"] == "std_0.100" and sampling["steps"] == 3
    assert found["versions"]["jax"]


def test_classify_counts_its_calls(trained, capsys):
    assert main(["classify", "--workdir", str(trained), "--limit", "30", "--json"]) == 0
    found = json.loads(lines(capsys)[0])
    assert found["images"] == 30 and 0 <= found["accuracy"] <= 1
    assert 10 < found["calls_per_image"] <= 40
    assert np.isfinite(found["nll"]) and 0 <= found["ece"] <= 1 and "noise" not in found


def test_classify_at_noise_levels(trained, capsys):
    options = ["--limit", "30", "--rounds", "one", "--noise", "0,.5"]
    assert main(["classify", "--workdir", str(trained), *options, "--json"]) == 0
    out, err = lines(capsys)
    found = json.loads(out)
    name = "classify_test_rounds_one_noise_0.0-0.5_limit_30.json"
    assert json.loads((trained / "receipts" / name).read_text()) == found
    assert found["calls_per_image"] == 40 and [n["std"] for n in found["noise"]] == [0, 0.5]
    assert found["noise"][0]["nll"] == found["nll"] != found["noise"][1]["nll"]
    assert set(found["tempered"]) <= set(found) and found["tempered"]["nll"] != found["nll"]
    assert "noise 0.5:" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--noise", "a"], ["--noise", "'a'", "0,.1,.2"]),
        (["--noise", ""], ["--noise", "''"]),
        (["--noise", ".1,-.2"], ["--noise", "-0.2", ">= 0"]),
        (["--noise", ".1,.1"], ["--noise", "once"]),
        (["--rounds", "all"], ["--rounds", "'all'", "halving, one"]),
        (["--draws", "0"], ["--draws", "0", ">= 1"]),
    ],
)
def test_bad_classification_options_are_one_message_and_code_2(trained, capsys, arguments, words):
    assert main(["classify", "--workdir", str(trained), *arguments]) == 2
    out, err = lines(capsys)
    assert not out and err.count("jaxgen: error") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "10"], ["--labels", "'10'", "0 to 9"]),
        (["--labels", "-1"], ["--labels", "0 to 9"]),
        (["--labels", "x"], ["--labels", "'x'"]),
        (["--labels", "3:0"], ["--labels", "counts"]),
        (["--per_label", "0"], ["--per_label"]),
        (["--steps", "0"], ["steps", "0", "1"]),
        (["--solver", "hoin"], ["solver", "hoin", "heun"]),
        (["--ema", "half_life_9"], ["--ema", "half_life_500"]),
        (["--batch_size", "0"], ["batch_size"]),
        (["--out", "grid.gif"], ["--out", ".png"]),
        (["--guidence", "2"], ["--guidence"]),
        (["--weak_ema", "std_0.100"], ["--weak_ema", "--guidance"]),
        (["--config.sample.steps=2"], ["--config.sample.steps"]),
    ],
)
def test_bad_sampling_options_are_one_message_and_code_2(trained, capsys, arguments, words):
    before = sorted(p for p in trained.rglob("*"))
    code = main(["sample", "--workdir", str(trained), *arguments])
    out, err = lines(capsys)
    assert code == 2 and not out
    assert err.count("jaxgen: error") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err
    assert sorted(p for p in trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.source.name=folder.folder --config.data.source.image_size=8", ["path"]),
        ("model.patch=3", ["image", "8", "patch"]),
        ("data.batch_size=0", ["config.data.batch_size"]),
        ("sample.guidance=wide", ["guidance"]),
        ("train.image=1", ["config.train.image", "images"]),
    ],
)
def test_bad_training_input_leaves_no_workdir(tmp_path, capsys, override, words):
    workdir = tmp_path / "run"
    first, *more = override.split(" ")
    code = main([*train_arguments(workdir, first), *more])
    err = lines(capsys)[1]
    assert code == 2 and "Traceback" not in err
    for word in words:
        assert word in err, err
    assert not workdir.exists()


def test_guidance_without_label_dropout_is_refused_before_training(tmp_path, capsys):
    workdir = tmp_path / "run"
    code = main(train_arguments(workdir, "method.label_dropout=0.0"))
    err = lines(capsys)[1]
    assert code == 2 and "label dropout" in err and not workdir.exists()


@pytest.mark.parametrize("command", ["sample", "evaluate", "classify", "ema"])
def test_a_folder_without_a_run_is_named(tmp_path, capsys, command):
    extra = ["--std", "0.1"] if command == "ema" else []
    assert main([command, "--workdir", str(tmp_path / "none"), *extra]) == 2
    assert "--workdir" in lines(capsys)[1]


def test_missing_options_and_commands_are_code_2(capsys):
    for arguments in ([], ["train"], ["paint"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert lines(capsys)[1].count("\n") == 1


def test_ctrl_c_while_sampling_is_code_130(trained, tmp_path):
    out = str(tmp_path / "samples.npz")
    process = start("sample", "--workdir", str(trained), "--per_label", "100000", "--out", out)
    wait_for(lambda: process.poll() is not None or _sampling(process), process=None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err


def _sampling(process) -> bool:
    return "sample" in process.stderr.readline()


def test_ctrl_c_in_the_final_evaluation_keeps_the_state(tmp_path):
    workdir = tmp_path / "run"
    overrides = ["train.images=320", "evaluate.at_end=True", "evaluate.samples=1000000"]
    process = start(*train_arguments(workdir, *overrides))
    wait_for(lambda: process.poll() is not None or _sampling(process), process=None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert (workdir / "checkpoints" / "20").is_dir()


def test_help_of_every_command_comes_from_a_real_process():
    code, out, _ = run("--help")
    assert code == 0
    for command in ("train", "sample", "evaluate", "classify", "ema"):
        assert command in out


def test_label_grammar():
    ten = [str(i) for i in range(10)]
    assert parse_labels("3,8", 2, ten) == ([3, 3, 8, 8], 2)
    assert parse_labels("0-2", 1, ten) == ([0, 1, 2], 1)
    assert parse_labels("1:3,4:3", 9, ten) == ([1, 1, 1, 4, 4, 4], 3)
    assert parse_labels(None, 1, "abc")[0] == [0, 1, 2]
    with pytest.raises(UsageError):
        parse_labels("5-3", 1, ten)


def test_labels_may_be_names():
    names = ("T-shirt", "cat", "dog", "2", "a:b")
    assert parse_labels("dog:2,0", 1, names)[0] == [2, 2, 0]
    assert parse_labels("T-shirt,cat-2,a:b:2", 1, names)[0] == [0, 1, 2, 3, 4, 4]
    assert parse_labels("2", 1, names)[0] == [3]  # a name, though it is a number
    with pytest.raises(UsageError, match="Did you mean 'dog'"):
        parse_labels("dogs", 1, names)
