"""What cannot end well is refused before the work, and what there is is kept."""

import contextlib
import functools
import io
import json
import operator
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

import jaxgen
from jaxgen.cli import PLACES
from jaxgen.cli import main as run_main
from jaxgen.metrics.cautions import cautions
from jaxgen.run.lock import locked
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.interrupt import Interrupts
from jaxgen.training.log import Log
from jaxgen.training.weights import dump
from tests import base_run
from tests.running import run_here, train_arguments


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(base_run.base(), tmp_path / "run")


def refusal(*words) -> str:
    try:
        code, out, err = run_here(*map(str, words))
    except SystemExit as end:  # argparse's own
        return said_by_argparse(end, words)
    assert code == 2 and not out, (code, out, err)
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
    return err


def said_by_argparse(end, words) -> str:
    assert end.code == 2
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(SystemExit):
        run_main(list(map(str, words)))
    assert len(err.getvalue().strip().splitlines()) == 1
    return err.getvalue()


@pytest.mark.parametrize(
    "out", ["a.jpg", "a.npy", "b/a.webp", "a.JPEG", "gs://bucket/a.png", "/proc/none/a.png"]
)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(out, tmp_path):
    # There is no such workdir: what is said first is checked first.
    assert f"--out: got '{out}'" in refusal("sample", "--workdir", tmp_path / "no", "--out", out)


@pytest.mark.parametrize("name", ["samples_w2.5", "a.b.c", "v1.0"])
def test_a_dot_makes_no_suffix(workdir, name, tmp_path):
    out = tmp_path / name
    assert (
        run_here("sample", "--workdir", str(workdir), "--labels", "1:2", "--out", str(out))[0] == 0
    )
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize("command", ["sample", "evaluate", "classify", "likelihood"])
@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**64 + 1), "1.5", "one"])
def test_one_rule_of_seeds(command, seed, workdir):
    assert "4294967295" in refusal(command, "--workdir", workdir, f"--seed={seed}")


@pytest.mark.parametrize("key", ["seed", "evaluate.seed", "classify.seed", "likelihood.seed"])
@pytest.mark.parametrize("seed", [-1, 2**32 + 1])
def test_seeds_of_a_config_are_checked_before_it_is_written(key, seed, tmp_path):
    said = refusal(*train_arguments(tmp_path / "run", f"{key}={seed}"))
    assert f"config.{key}: got {seed}" in said and not (tmp_path / "run").exists()


def test_the_largest_seed_is_a_seed(workdir, tmp_path):
    images = []
    for seed in (2**32 - 1, 2**32 - 2):
        images.append(jaxgen.load(workdir).sample([1], seed=seed).images)
    assert np.isfinite(images).all() and np.abs(images[0] - images[1]).max() > 0.01


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "two"])
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_guidance_scale_is_a_finite_number(command, scale, workdir):
    assert "finite number" in refusal(command, "--workdir", workdir, f"--guidance={scale}")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--scores", "precision_k4"], "--scores: got 'precision_k4'"),
        (["--scores", ""], "--scores"),
        (["--samples", "1"], "--samples: got 1; allowed: images >= 2"),
        (["--intervals", "1"], "--intervals"),
        (["--sample.solver", "eulr"], "Did you mean"),
        (["--sample.steps", "0"], "steps"),
        (["--out", "a.txt"], "--out: got 'a.txt'; allowed: a name that ends in .json"),
        (["--config.data.source.nope", "1"], "config.data.source.nope"),
        (["--config.model.width", "8"], "--config.model.width"),
    ],
)
def test_evaluate_says_so_before_it_draws(words, said, workdir, monkeypatch):
    def never(*_, **__):
        raise AssertionError("work before the refusal")

    monkeypatch.setattr(jaxgen.Model, "sample", never)
    monkeypatch.setattr("jaxgen.scoring.samples.cached", never)
    assert said in refusal("evaluate", "--workdir", workdir, *words)


def test_a_method_without_a_likelihood_says_so_before_training(tmp_path):
    arguments = train_arguments(tmp_path / "run", "likelihood.at_end=True", "model='unet.UNet'")
    config = tmp_path / "gan.py"
    config.write_text("from configs.digits_gan import *\n")
    said = refusal(*arguments[:2], config, *arguments[3:5], "--config.likelihood.at_end=True")
    assert "config.likelihood.at_end" in said and not (tmp_path / "run").exists()


def test_what_was_made_before_a_stop_is_kept(workdir, tmp_path, monkeypatch):
    model = jaxgen.load(workdir)
    whole = model.sample(np.arange(10), seed=3, batch_size=8)
    answers = iter([False, False, True])  # before compiling, before the first batch, the second
    part = model.sample(np.arange(20) % 10, seed=3, batch_size=8, stop=lambda: next(answers))
    np.testing.assert_array_equal(part.labels, np.arange(8))
    np.testing.assert_array_equal(part.images, whole.images[:8])

    counted = iter([False, False, False, True, True, True])
    monkeypatch.setattr(Interrupts, "reached", lambda self: next(counted))
    outs = [tmp_path / "a.npz", tmp_path / "a.png", tmp_path / "many"]
    words = [word for out in outs for word in ("--out", str(out))]
    words = ["--labels", "0-9:3", "--batch_size", "8", *words]
    code, out, err = run_here("sample", "--workdir", str(workdir), *words)
    assert code == 130 and "stopped after 16 of 30 images" in err and str(outs[2]) in err
    with np.load(outs[0]) as file:
        assert len(file["images"]) == len(file["labels"]) == 16
    assert len(list(outs[2].iterdir())) == 16 and Image.open(outs[1]).size[0] > 8


def test_nothing_is_written_where_nothing_was_made(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(Interrupts, "reached", lambda self: True)
    code, _, err = run_here("sample", "--workdir", str(workdir), "--out", str(tmp_path / "a.npz"))
    assert code == 130 and "nothing was written" in err and not (tmp_path / "a.npz").exists()


def test_a_second_training_in_a_workdir_names_the_first(tmp_path):
    workdir = tmp_path / "run"
    with locked(workdir):
        said = refusal(*train_arguments(workdir))
        assert f"process {os.getpid()} on {socket.gethostname()}" in said
        assert not (workdir / "config.json").exists()
    with locked(workdir):  # let go of
        pass


def test_a_snapshot_is_there_before_the_checkpoint_of_its_step(tmp_path, monkeypatch):
    """A run killed between the two goes on from before, and so makes the same snapshot again."""
    seen, save = [], Checkpoints.save

    def spied(self, step, *rest, **options):
        seen.append((step * 16, [p.name for p in (tmp_path / "run" / "ema_snapshots").glob("*")]))
        return save(self, step, *rest, **options)

    monkeypatch.setattr(Checkpoints, "save", spied)
    config = base_run.config("ema.power_std=(0.05,)", "checkpoint.snapshot_every=64")
    jaxgen.train(config, tmp_path / "run")
    assert seen and all(f"std_0.050_{images:012d}.safetensors" in names for images, names in seen)


def test_the_last_snapshot_is_of_the_end_of_the_run(tmp_path):
    config = base_run.config("ema.power_std=(0.05, 0.1)", "checkpoint.snapshot_every=48")
    jaxgen.train(config, tmp_path / "run")  # 8 steps of 16
    names = sorted(p.name for p in (tmp_path / "run" / "ema_snapshots").glob("std_0.050_*"))
    assert [int(name[-24:-12]) for name in names] == [48, 96, 128]
    made = jaxgen.api.reconstruct_ema(tmp_path / "run", std=0.07)
    assert made["ema"] == "std_0.070" in jaxgen.load(tmp_path / "run").params


def test_a_lock_does_not_outlive_its_process(tmp_path):
    code = f"from pathlib import Path; from jaxgen.run.lock import locked; import os\n" \
           f"with locked(Path({str(tmp_path)!r})): os._exit(9)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_double_precision_changes_nothing(workdir):
    images = jaxgen.load(workdir).sample([3, 4], seed=1).images
    with jax.enable_x64(True):
        again = jaxgen.load(workdir).sample([3, 4], seed=1).images
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, images)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_what_reads_a_run_may_be_alone_in_an_allocation(variable, workdir, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, "4")
    out = str(tmp_path / "a.npz")
    assert run_here("sample", "--workdir", str(workdir), "--labels", "1:1", "--out", out)[0] == 0
    assert "config.hosts" in refusal(*train_arguments(tmp_path / "new"))


@pytest.mark.parametrize(
    "name, content, command",
    [
        ("config.json", b"[1, 2]", "sample"),
        ("config.json", b"{", "sample"),
        ("config.json", b"\xff\xfe", "sample"),
        ("ema", b"", "ema"),
        ("metrics.jsonl", b"\x00\x01\n\x02\n", "train"),
        ("metrics.jsonl", b'"a"\n[1]\n', "train"),
    ],
)
def test_a_workdir_with_something_else_in_it(name, content, command, workdir):
    path = workdir / name
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(content)
    words = {"ema": ["--std", "0.05"], "train": ["--config", "tests/base_config.py"]}.get(
        command, []
    )
    assert str(path) in refusal(command, "--workdir", workdir, *words).replace(
        "--workdir: got '", ""
    )


def test_snapshots_that_are_a_file(workdir):
    (workdir / "ema_snapshots").write_text("")
    assert "a run with snapshots" in refusal("ema", "--workdir", workdir, "--std", "0.05")


def test_an_average_in_a_file_never_takes_the_place_of_the_runs_own(workdir):
    model = jaxgen.load(workdir)
    other = jax.tree.map(np.zeros_like, jax.device_get(model.params["half_life_500"]))
    (workdir / "ema").mkdir()
    for name, images in (("half_life_500", 0), ("std_0.050", 0), ("std_0.100", 8)):
        (workdir / "ema" / f"{name}.safetensors").write_bytes(dump(other, {"images": str(images)}))
    again = jaxgen.load(workdir)
    assert again.images_seen == 0
    assert {"half_life_500@0", "std_0.050", "std_0.100@8"} <= set(again.params)
    for name in ("half_life_500", "params"):
        same = jax.tree.map(np.array_equal, again.params[name], model.params[name])
        assert all(jax.tree.leaves(same))
    path = workdir / "ema" / "std_0.050.safetensors"
    spoilt = bytearray(path.read_bytes())
    spoilt[-1] ^= 1
    path.write_bytes(spoilt)
    assert "damaged" in refusal("sample", "--workdir", workdir)


def test_a_tilde_is_home_in_every_option_that_is_a_path(workdir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["sample", "--workdir=~/run", "--labels", "1:1", "--out=~/b.npz"]
    assert run_here(*words)[0] == 0 and (tmp_path / "b.npz").exists()
    assert "workdir" in PLACES and "out" in PLACES
    assert "s3://bucket" in refusal("sample", "--workdir", "s3://bucket")
    assert not (tmp_path / "s3:").exists()


OWN = {
    "network without train": (
        "import flax.linen as nn\nclass Net(nn.Module):\n"
        "    @nn.compact\n    def __call__(self, x, noise, condition): return nn.Dense(1)(x)\n",
        ["model=own_code.Net"],
        "unexpected keyword argument 'train'",
    ),
    "network of another shape": (
        "import flax.linen as nn\nclass Net(nn.Module):\n"
        "    @nn.compact\n    def __call__(self, x, noise, condition, *, train): return x[:, :2]\n",
        ["model=own_code.Net"],
        "own_code.Net",
    ),
    "import that fails": (
        "import not_there\ndef g(): pass\n",
        ["sample.guidance=[dict(name='own_code.g')]"],
        "not_there",
    ),
    "guidance that cannot be built": (
        "def g(): raise KeyError('oops')\n",
        ["sample.guidance=[dict(name='own_code.g')]"],
        "KeyError: 'oops' (",
    ),
    "guidance that fails when traced": (
        "import dataclasses\ndef g(guided):\n"
        "    return dataclasses.replace(guided, call=lambda *a: 1 / 0)\n",
        ["sample.guidance=[dict(name='own_code.g')]"],
        "ZeroDivisionError",
    ),
    "no such function": ("def g(): pass\n", ["model=own_code.f"], "Did you mean"),
}


@pytest.mark.parametrize("kind", OWN)
def test_ones_own_code_is_answered_in_one_message(kind, tmp_path, monkeypatch):
    text, overrides, said = OWN[kind]
    (tmp_path / "own_code.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_code", None)
    try:
        err = refusal(*train_arguments(tmp_path / "run", *overrides))
    finally:
        sys.modules.pop("own_code", None)
    assert said in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('oops')", "KeyError: 'oops' ("),
        ("return images.reshape(3)", "ValueError: cannot reshape"),
        ("return {}.x", "AttributeError: 'dict' object has no attribute 'x' ("),
    ],
)
def test_ones_own_features_that_fail_are_one_message(body, said, tmp_path, monkeypatch):
    """Found only where it is called, in the middle of the work."""
    (tmp_path / "own_features.py").write_text(f"def f(images):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_features", None)
    images = np.zeros((80, 8, 8, 1), np.uint8) + np.arange(80, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "a.npz", images=images)
    words = ["evaluate", "--samples", tmp_path / "a.npz", "--reference", tmp_path / "a.npz"]
    words += ["--features", "own_features:f", "--scores", "fid", "--intervals", 0]
    try:
        code, _, err = run_here(*map(str, words))
    finally:
        sys.modules.pop("own_features", None)
    assert code == 2 and "Traceback" not in err
    assert said in err and f"{tmp_path / 'own_features.py'}:2)" in err, err


def test_a_fault_of_jaxgen_itself_is_a_traceback(monkeypatch):
    """Whoever reports it needs all of it."""
    from jaxgen.cli import doctor

    monkeypatch.setattr(doctor, "run", functools.partial(operator.getitem, {}))
    with pytest.raises(TypeError, match="unhashable"):
        run_main(["doctor"])


@pytest.mark.parametrize(
    "text",
    ["def get_config(): return nothing_there", "import not_there", "def get_config(): return {}.x",
     "def get_config(): return 3", "get_config = 3", "def get_config(: pass", "1 / 0"],
)  # fmt: skip
def test_a_config_that_cannot_be_loaded_is_one_message(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    assert str(path) in refusal("train", "--config", path, "--workdir", tmp_path / "run")


def test_own_modules_beside_the_call_are_found_by_the_script(workdir, tmp_path):
    (tmp_path / "beside_the_call.py").write_text(
        "def brightness():\n    return lambda x, labels: x.mean((1, 2, 3))\n"
    )
    steer = "dict(name='search.best_of', count=2, reward='beside_the_call.brightness')"
    words = ["sample", "--workdir", str(workdir), "--labels", "1:1", f"--sample.steer={steer}"]
    code = "import sys; from jaxgen.cli import main; sys.exit(main())"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env["PYTHONPATH"] = os.path.dirname(os.path.dirname(jaxgen.__file__))
    # As a script's, sys.path begins with the script's folder and not with the call's.
    code = "import sys; sys.path[0] = '/'; " + code.removeprefix("import sys; ")
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=env, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_resumed_run_is_the_same_one_at_wandb(tmp_path, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        return types.SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        Log(tmp_path / name, step=0, tensorboard=False, wandb="project", config={}).close()
    ids = [call["id"] for call in calls]
    assert ids[0] == ids[1] != ids[2] and all(call["resume"] == "allow" for call in calls)


def test_a_class_alone_teaches_a_classifier_nothing():
    scores = {"fd_classifier": {"value": 1.0, "floor": 0.5, "features": "classifier"}}
    assert cautions(scores, classes=2) == []
    assert "one class" in cautions(scores, classes=1)[0]


@pytest.mark.parametrize("words", [["-m", "experiments", "list"], ["-m", "jaxgen", "--help"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(words):
    process = subprocess.Popen(
        [sys.executable, "-u", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) in (0, 141) and process.stderr.read() == ""


def test_a_platform_that_is_not_here_is_one_message(workdir, tmp_path):
    words = ["-m", "jaxgen", "sample", "--workdir", str(workdir), "--out", str(tmp_path / "a.png")]
    env = {**os.environ, "JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, *words], env=env, text=True, capture_output=True)
    assert done.returncode == 2 and "JAX_PLATFORMS: got 'cuda'" in done.stderr
    assert "Traceback" not in done.stderr


def test_tensorboards_files_are_written_in_the_callers_thread(tmp_path):
    threads = threading.active_count()
    for step in (0, 3):
        log = Log(tmp_path, step=step, tensorboard=True, wandb=None, config={})
        log.scalars(step + 1, {"loss": 0.5 + step})
        log.image(step + 1, "samples", np.zeros((4, 4, 3), np.uint8))
        assert threading.active_count() == threads
        log.close()
        time.sleep(1.1)  # files are told apart by their second
    seen = [
        event for path in sorted((tmp_path / "tensorboard").iterdir()) for event in events(path)
    ]
    values = [(e.step, value) for e in seen for value in e.summary.value]
    assert [(step, v.simple_value) for step, v in values if v.tag == "loss"] == [(1, 0.5), (4, 3.5)]
    assert [(step, v.image.width) for step, v in values if v.tag == "samples"] == [(1, 4), (4, 4)]
    # TensorBoard forgets what the first file says of the step at which the second begins.
    assert [e.step for e in seen if e.session_log.status == e.session_log.START] == [1, 4]


def events(path):
    """The events of a file: records of length, check sum, bytes, check sum."""
    from tensorboardX.proto.event_pb2 import Event

    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack("<Q", data[place : place + 8])
        yield Event.FromString(data[place + 12 : place + 12 + size])
        place += size + 16
