"""Exact resume: whatever kills a run, the same command goes on to the same bits."""

import json
import random
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.training import checkpoint, weights
from jaxgen.training.log import read_jsonl
from jaxgen.training.weights import read
from tests.running import (
    assert_same_bits,
    final_state,
    raw_state,
    run,
    run_here,
    start,
    train_arguments,
    wait_for,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = run(*train_arguments(workdir))
    assert code == 0, err
    return workdir


def test_killed_runs_resume_bit_for_bit(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"
    rng = random.Random(0)
    kills = 0
    # Killed while saving the second checkpoint or just after, then at a random later moment.
    for moment in (
        lambda: list(checkpoints.glob("80*")),
        lambda: any(int(p.name) >= 200 for p in checkpoints.glob("[0-9]*") if p.name.isdigit()),
    ):
        process = start(*train_arguments(workdir))
        wait_for(lambda moment=moment, p=process: p.poll() is not None or moment())
        if process.poll() is None:
            wait_for(lambda: rng.random() < 0.2)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills, "the run ended before it could be killed; make it longer"
    code, _, err = run(*train_arguments(workdir))
    assert code == 0, err
    assert "Resuming at step" in err
    step, state = raw_state(workdir)
    step_whole, state_whole = raw_state(uninterrupted)
    assert step == step_whole == 400
    assert_same_bits(state, state_whole)
    # The log has each step once, and the same numbers where they are not timings.
    rows, whole = (
        [(r["step"], r["loss"], r["grad_norm"]) for r in read_jsonl(w / "metrics.jsonl")]
        for w in (workdir, uninterrupted)
    )
    assert rows == whole
    for a in sorted((uninterrupted / "ema_snapshots").iterdir()):
        # Not the bytes: safetensors writes its metadata's two keys in either order.
        one, two = read(a), read(workdir / "ema_snapshots" / a.name)
        assert_same_bits(one[0], two[0])
        assert one[1] == two[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_training_saves_and_says_so(uninterrupted, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(*train_arguments(workdir))
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), process=process)
    wait_for(lambda: (workdir / "metrics.jsonl").read_text().count("\n") >= 2, process=process)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    stopped, _ = raw_state(workdir)
    assert f"stopped by {signal.Signals(number).name}; saved at step {stopped} of 400" in err
    assert 40 <= stopped < 400
    code, _, err = run(*train_arguments(workdir))
    assert code == 0 and f"Resuming at step {stopped}" in err, err
    assert_same_bits(raw_state(workdir)[1], raw_state(uninterrupted)[1])


def test_signal_before_the_first_step_saves_too(tmp_path):
    workdir = tmp_path / "run"
    process = start(*train_arguments(workdir))
    wait_for(lambda: (workdir / "config.json").exists(), process=process)
    process.send_signal(signal.SIGINT)  # while the program is being compiled
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert raw_state(workdir)[0] >= 1


def damaged(workdir: Path, target: Path, steps: int) -> Path:
    """A copy of a run whose newest `steps` checkpoints are truncated."""
    shutil.copytree(workdir, target)
    folders = sorted((target / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    for folder in folders[-steps:]:
        largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    return target


def test_truncated_checkpoint_falls_back_to_the_last_whole_one(uninterrupted, tmp_path):
    workdir = damaged(uninterrupted, tmp_path / "run", 1)
    code, _, err = run(*train_arguments(workdir))
    assert code == 0, err
    assert "WARNING" in err and "checkpoint 400" in err and "Resuming at step 360" in err
    assert_same_bits(raw_state(workdir)[1], raw_state(uninterrupted)[1])
    assert list((workdir / "broken_checkpoints").iterdir()), "nothing is deleted"


def test_no_whole_checkpoint_is_an_error_never_a_fresh_start(uninterrupted, tmp_path):
    workdir = damaged(uninterrupted, tmp_path / "run", 9)
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    for arguments in (train_arguments(workdir), ["sample", "--workdir", str(workdir)]):
        code, out, err = run_here(*arguments)
        assert code == 2 and "none can be read" in err and "Traceback" not in err, err
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before


def test_killed_in_the_first_save_starts_again(tmp_path):
    workdir = tmp_path / "run"
    process = start(*train_arguments(workdir, "checkpoint.every=16"))
    # A folder that orbax has not renamed yet.
    wait_for(lambda: list((workdir / "checkpoints").glob("*")), process=process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdigit():
            path.rename(path.with_name(f"{path.name}.orbax-checkpoint-tmp"))
    code, _, err = run(*train_arguments(workdir, "checkpoint.every=3200"))
    assert code == 0 and "Resuming" not in err, err


def test_flipped_bit_is_noticed(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    files = [p for p in (workdir / "checkpoints" / "400" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    code, _, err = run_here(*train_arguments(workdir))
    assert code == 0 and "damaged" in err and "Resuming at step 360" in err, err


def test_changed_config_is_named_and_refused_where_it_cannot_go_on(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    saved = (workdir / "config.json").read_text()
    code, _, err = run_here(*train_arguments(workdir, "model.width=32", "train.images=7000"))
    assert code == 2, err
    assert "config.model.width: 16 -> 32" in err and "train.images" not in err.split("cannot")[1]
    assert (workdir / "config.json").read_text() == saved
    code, _, err = run_here(*train_arguments(workdir, "train.images=7000"))
    assert code == 0 and "config.train.images: 6400 -> 7000" in err, err
    assert raw_state(workdir)[0] == 438


def test_init_from_starts_from_the_other_runs_average(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    code, _, err = run_here(
        *train_arguments(workdir, "train.images=16", "optimizer.learning_rate=1e-30"),
        "--init_from",
        str(uninterrupted),
    )
    assert code == 0, err
    source, start_ = final_state(uninterrupted), final_state(workdir)
    for a, b in zip(
        jax.tree.leaves(source["half_life_500"]), jax.tree.leaves(start_["params"]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_full_disk_is_one_message_and_keeps_what_was_saved(uninterrupted, tmp_path):
    import resource

    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code, _, err = run(
        *train_arguments(workdir, "train.images=7000", "checkpoint.snapshot_every=0"),
        first=no_large_files,
    )
    # orbax's own threads print tracebacks of theirs, before and after our one message.
    ours = [line for line in err.splitlines() if line.startswith("jaxgen: error:")]
    assert code == 2 and len(ours) == 1 and "could not be written" in ours[0], err
    assert raw_state(workdir)[0] == 400
    code, _, err = run_here(
        *train_arguments(workdir, "train.images=7000", "checkpoint.snapshot_every=0")
    )
    assert code == 0 and raw_state(workdir)[0] == 438, err


def test_divergence_names_step_and_metric_and_keeps_the_last_good(tmp_path):
    workdir = tmp_path / "run"
    code, _, err = run_here(*train_arguments(workdir, "optimizer.learning_rate=1e30"))
    assert code == 1 and "not finite at step" in err and "Traceback" not in err, err
    rows = read_jsonl(workdir / "metrics.jsonl")
    assert all(isinstance(r["loss"], float) for r in rows)


def test_posthoc_average_from_the_command_line(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    code, out, err = run_here("ema", "--workdir", str(workdir), "--std", "0.07", "--json")
    assert code == 0, err
    assert json.loads(out)["ema"] == "std_0.070"
    params = final_state(workdir)["std_0.070"]
    # Between the two that were kept, and near them.
    low, high = final_state(workdir)["std_0.050"], final_state(workdir)["std_0.100"]
    for p, a, b in zip(*(jax.tree.leaves(t) for t in (params, low, high)), strict=True):
        assert np.abs(p - (a + b) / 2).max() <= np.abs(a - b).max() + 1e-4
    for arguments, word in (
        (["--std", "0.5"], "0.2887"),
        (["--std", "0.1", "--images", "99999"], "--images"),
    ):
        code, _, err = run_here("ema", "--workdir", str(workdir), *arguments)
        assert code == 2 and word in err, err


def test_parameters_of_another_layout_are_refused(tmp_path, monkeypatch):
    state = {"qkv": jax.numpy.ones((2, 6))}
    place = jax.tree.map(lambda leaf: leaf.sharding, state)
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "LAYOUT", "1")
        older.setattr(weights, "LAYOUT", "1")
        (tmp_path / "old.safetensors").write_bytes(weights.dump(state))
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, {}, wait=True)
            assert checkpoints.restore(state, place) is not None
    with (
        checkpoint.Checkpoints(tmp_path, say=lambda text: None) as checkpoints,
        pytest.raises(UsageError, match="written with layout 1 .* this jaxgen reads 2"),
    ):
        checkpoints.restore(state, place)
    with pytest.raises(UsageError, match=r"old\.safetensors: written with layout 1"):
        read(tmp_path / "old.safetensors")
    (tmp_path / "new.safetensors").write_bytes(weights.dump(state))
    assert_same_bits(read(tmp_path / "new.safetensors")[0], state)
