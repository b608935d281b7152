"""What a model's scoring adds to the scores: receipts like those of files, parts of processes."""

import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxgen.api import classify, compare, evaluate, evaluate_files, load, train
from jaxgen.cli import main
from jaxgen.config import load as load_config
from jaxgen.config import override
from jaxgen.data import whole
from jaxgen.errors import UsageError
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.metrics.sets.side import parts
from jaxgen.report.pictures import heard
from jaxgen.run.model import Model
from jaxgen.run.setup import TOP
from jaxgen.scoring.shared import Shared
from tests.every_family import built
from tests.nn_kit import live_params
from tests.running import TINY


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "run"
    config = load_config(TINY)
    override(config, ["train.images=320", "log.tensorboard=False"], TOP)
    train(config, path)
    return path


def means(images):
    """Features of one's own: of each quarter of the image its mean."""
    return images.reshape(len(images), 2, 4, 2, 4).mean((2, 4)).reshape(len(images), 4)


MEANS = f"{__name__}:means"


def test_a_models_receipt_and_a_files_are_alike(workdir, tmp_path):
    model = load(workdir)
    real = whole(model.setup.test_source)
    made = model.sample(np.arange(900) % 10, seed=5).images
    train_images = whole(model.setup.source)["image"]
    np.savez(tmp_path / "made.npz", images=quantise(made), labels=np.arange(900) % 10)
    np.savez(tmp_path / "real.npz", images=real["image"], labels=real["label"])
    np.savez(tmp_path / "train.npz", images=train_images)
    places = [tmp_path / f"{name}.npz" for name in ("made", "real")]
    theirs = evaluate_files(*places, train=tmp_path / "train.npz", features=MEANS, intervals=2)
    (ours,) = evaluate(model, workdir, samples=900, features=MEANS, intervals=2)["receipts"]
    assert ours["reference"]["sha256"] == theirs["reference"]["sha256"]
    assert ours["train"]["sha256"] == theirs["train"]["sha256"]
    mine = {s["name"]: s for s in ours["scores"]}
    # The floor is the training half against the test half in both.
    for name in ("fd_means", "kid_means", "recall_k3_means"):
        assert mine[name]["floor"] == pytest.approx(theirs["scores"][name]["floor"], rel=1e-9)
        assert mine[name]["interval"] is not None
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    runs = [next((workdir / "receipts").glob("evaluate*.json")), tmp_path / "theirs.json"]
    found = compare(runs, tmp_path / "page.html")
    assert set(found["scores"]["fd_means"]["values"]) == set(found["receipts"])


def test_scores_and_intervals_of_a_model_are_chosen(workdir, capsys):
    command = ["evaluate", "--workdir", str(workdir), "--samples", "100", "--json"]
    assert main([*command, "--scores", "fid,authenticity", "--intervals", "0"]) == 0
    found = json.loads(capsys.readouterr().out)["receipts"][0]["scores"]
    names = {s["name"] for s in found}
    assert {"fd_classifier", "fd_classifier_matched", "authenticity_classifier"} <= names
    assert not {"kid_classifier", "recall_k3_classifier"} & names
    assert not any("interval" in s for s in found)
    for wrong, said in (("fidd", "--scores: got 'fidd'"), ("sfid", "--features inception")):
        assert main([*command, "--scores", wrong]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "--intervals", "1"]) == 2
    assert "--intervals: got 1" in capsys.readouterr().err
    for features, said in (
        (["--features", "lpips"], "lpips compares images with their reconstructions"),
        (["--features", f"{MEANS},identity", "--weights", "x.pth"], "a single network"),
    ):
        assert main([*command, *features]) == 2
        assert said in capsys.readouterr().err


def test_composed_guidance_is_scored_and_named(workdir, capsys):
    command = ["evaluate", "--workdir", str(workdir), "--samples", "100", "--json"]
    command += ["--scores", "fid", "--intervals", "0", "--features", MEANS]
    rule = [{"name": "cfg.cfg", "weight": 3.0}, {"name": "interval.limit", "low": 0.2, "high": 0.8}]
    command += [f"--sample.guidance={rule}"]
    assert main([*command, "--guidance", "2"]) == 2
    assert "--sample.guidance; not both" in capsys.readouterr().err
    assert main(command) == 0
    (found,) = json.loads(capsys.readouterr().out)["receipts"]
    assert found["sampling"]["guidance"] == rule and found["guidance"] is None


class Pixels:
    """Features, and one thing more, of another width and kind."""

    name, digest = "pixels", "none"

    def features(self, images):
        return self.parts(images)["features"]

    def parts(self, images):
        flat = images.reshape(len(images), -1)
        return {"features": flat[:, :5] / np.float32(3), "probabilities": flat[:, :2] / 3.0}


@pytest.mark.parametrize("count", [7, 2])
def test_processes_look_at_a_part_each_and_all_know_everything(monkeypatch, count):
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8)
    wanted, inner = parts(Pixels(), images), Pixels()
    assert all(
        np.array_equal(array, Shared(inner).parts(images)[name]) for name, array in wanted.items()
    )
    processes, sent = 3, []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen = []
    monkeypatch.setattr(Pixels, "parts", _counted(Pixels.parts, seen))

    def run(process, gather):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(multihost_utils, "process_allgather", gather)
        return Shared(inner).parts(images)

    def sends(array, tiled):
        sent.append(array)
        return np.concatenate([array] * processes)

    for process in range(processes):
        run(process, sends)
    assert max(seen) == -(-count // processes)
    turns = [np.concatenate(sent[i::2]) for i in range(2)]
    found = run(1, lambda array, tiled: turns.pop(0))
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def _counted(fn, seen):
    def counting(self, images):
        seen.append(len(images))
        return fn(self, images)

    return counting


def test_too_few_images_are_refused_before_there_are_any(workdir):
    with pytest.raises(UsageError, match="--samples: got 1; allowed: images >= 2"):
        evaluate(load(workdir), workdir, samples=1, features="identity")


def test_what_cannot_be_had_of_few_images_is_left_out_with_the_reason(workdir):
    found = evaluate(load(workdir), workdir, samples=4)["receipts"][0]
    names = {score["name"] for score in found["scores"]}
    assert "kid_classifier" in names and "fd_classifier" not in names
    assert "6 or more" in found["left_out"]["precision_k3_classifier"]
    assert not names & set(found["left_out"])
    with pytest.raises(UsageError, match="6 or more"):  # asked for by name
        evaluate(load(workdir), workdir, samples=4, scores=["precision_k3"])


def test_samples_that_were_saved_score_as_those_that_are_drawn(workdir, tmp_path, capsys):
    place, real = tmp_path / "made.npz", tmp_path / "real.npz"
    base = ["--workdir", str(workdir), "--seed", "0"]
    assert main(["sample", *base, "--labels", ",".join(f"{c}:12" for c in range(10)), "--out",
                 str(place)]) == 0  # fmt: skip
    test = whole(load(workdir).setup.test_source)
    np.savez(real, images=test["image"], labels=test["label"])
    with np.load(place) as file:
        assert np.abs(file["images"]).max() > 1 and file["clip"].tolist() == [-1, 1]
        arrays = dict(file)
    capsys.readouterr()
    command = ["evaluate", "--samples", str(place), "--reference", str(real), "--json"]
    command += ["--features", MEANS, "--intervals", "0"]
    assert main(command) == 0
    saved = json.loads(capsys.readouterr().out)["scores"]["fd_means"]["value"]
    np.savez(place, images=quantise(arrays["images"]), labels=arrays["labels"])
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["fd_means"]["value"] == saved
    np.savez(place, **{**arrays, "clip": np.array([0.0, 1.0])})
    assert main(command) == 2
    assert "clip [0.0, 1.0]" in capsys.readouterr().err


def test_a_quick_look_takes_the_place_of_no_receipt(workdir, capsys):
    model = load(workdir)
    receipt = evaluate(model, workdir)["receipts"][0]
    assert receipt["classifier_training_images"] == 901 == len(model.setup.source)
    own = (workdir / "receipts" / "evaluate.json").read_bytes()
    evaluate(model, workdir, samples=40, seed=5)
    evaluate(model, workdir, steps=2)
    assert (workdir / "receipts" / "evaluate.json").read_bytes() == own
    names = {p.name for p in (workdir / "receipts").glob("evaluate*")}
    assert {"evaluate_samples_40_seed_5.json", "evaluate_steps_2.json"} <= names
    # Of one workdir, only what can be compared is; the look by its name.
    page = workdir.parent / "page.html"
    assert "evaluate_samples_40_seed_5" not in str(compare([workdir], page)["receipts"])
    assert compare([workdir / "receipts" / "evaluate_samples_40_seed_5.json"], page)["receipts"]
    classify(model, workdir)
    own = (workdir / "receipts" / "classify_test.json").read_bytes()
    classify(model, workdir, limit=10)
    assert (workdir / "receipts" / "classify_test.json").read_bytes() == own
    assert (
        json.loads((workdir / "receipts" / "classify_test_limit_10.json").read_text())["images"]
        == 10
    )


def test_the_report_follows_the_receipts_and_keeps_what_training_took(workdir):
    before = json.loads((workdir / "report.json").read_text())
    assert before["timings"]["images_per_second"] > 0
    evaluate(load(workdir), workdir, samples=900, seed=9)
    after = json.loads((workdir / "report.json").read_text())
    seeds = [r["sampling"]["seed"] for r in after["results"]["evaluate"]["receipts"]]
    assert 9 in seeds and "seed" in (workdir / "report.html").read_text()
    assert after["timings"] == before["timings"]
    # Beside the training images that are nearest to them: the nearest samples, then of all ranks.
    name = "evaluate_samples_900_seed_9"
    names = after["results"]["evaluate"]["names"]
    assert name in names  # beside what tests before this one have left in the workdir
    said = heard(workdir / "samples" / f"nearest_{name}.png")
    first, ranks = np.split(np.array(said["distances"]), 2)
    assert (np.diff(first) >= 0).all() and (np.diff(ranks) >= 0).all() and ranks[0] == first[0]
    assert said["samples"] == 900 and ranks[-1] > first[-1]
    assert "of 900 samples" in (workdir / "report.html").read_text()
    scores = after["results"]["evaluate"]["receipts"][names.index(name)]["scores"]
    (accuracy,) = (s for s in scores if s["name"] == "accuracy_classifier")
    pairs = np.array(accuracy["also"]["confusion"])
    assert pairs[:, 2].sum() == 900
    right = pairs[pairs[:, 0] == pairs[:, 1], 2].sum()
    assert accuracy["value"] == pytest.approx(right / 900)
    assert all(s["says"].endswith(".") for s in scores)
    config = load_config(TINY)
    override(config, ["train.images=320", "log.tensorboard=False"], TOP)
    train(config, workdir)  # finished already: nothing to do
    again = json.loads((workdir / "report.json").read_text())
    for key in ("train", "compile", "images_per_second"):
        assert again["timings"][key] == before["timings"][key]


def test_scores_go_elsewhere_where_the_workdir_cannot_be_written(workdir, tmp_path, monkeypatch):
    model, asked = load(workdir), dict(samples=20)
    before = sorted(p.name for p in (workdir / "receipts").iterdir())
    page = (workdir / "report.json").read_bytes()
    found = evaluate(model, workdir, out=tmp_path / "scores.json", **asked)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["receipts"] == found["receipts"]
    assert sorted(p.name for p in (workdir / "receipts").iterdir()) == before
    assert (workdir / "report.json").read_bytes() == page

    def refuse(option, place, **_):
        raise UsageError(f"{option}: {place}")

    monkeypatch.setattr("jaxgen.files.check", refuse)
    monkeypatch.setattr(model, "sample", lambda *a, **k: pytest.fail("work before the refusal"))
    with pytest.raises(UsageError, match="receipts"):
        evaluate(model, workdir, **asked)


def test_noise_is_not_shown_as_precise_without_a_caution(tmp_path):
    chance = np.random.default_rng(0)
    labels = np.arange(400) % 2
    real = (100 + 40 * labels[:, None, None, None] + chance.normal(0, 8, (400, 8, 8, 1))).clip(
        0, 255
    )
    noise = chance.uniform(0, 255, (400, 8, 8, 1))
    for name, images in (("real", real), ("noise", noise)):
        np.savez(tmp_path / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    places = {name: tmp_path / f"{name}.npz" for name in ("real", "noise")}
    found = evaluate_files(places["noise"], places["real"], features="classifier", intervals=0)
    (caution,) = found["cautions"]
    assert "fd_reference_classifier" in caution and "precision_k3_reference_classifier" in caution
    same = evaluate_files(places["real"], places["real"], features="classifier", intervals=0)
    assert same["cautions"] == []


def test_a_table_of_scores_has_a_line_each(workdir, capsys):
    found = evaluate(load(workdir), workdir, samples=40)["receipts"][0]
    said = [
        line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith("  ")
    ]
    for score in found["scores"]:
        assert said.count(score["name"]) == 1


def test_what_a_family_measures_itself_says_nothing_of_the_receipt_as_a_whole(tmp_path):
    """A score's sentence is the score's; at the top of a receipt it would be a setting."""
    setup = built("gflownet")
    model = Model(setup, {"params": live_params(setup.method, 0.2)}, images=64, step=2)
    (receipt,) = evaluate(model, tmp_path)["receipts"]
    assert not {"says", "better"} & receipt.keys()
    said = [score for score in receipt["scores"] if "says" in score]
    assert said and all(score["says"].endswith(".") for score in said)
