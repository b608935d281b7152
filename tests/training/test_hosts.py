"""Runs of several processes on this machine: the same result, and an end to whatever goes wrong.

The order in which eight devices' gradients are added differs between one process (XLA's own
all-reduce) and several (Gloo), so one process and several agree up to rounding; several processes
agree with each other, and with themselves after any interruption, bit for bit.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen import api
from jaxgen import config as configs
from jaxgen.data import digits
from jaxgen.errors import Lost, UsageError
from jaxgen.mesh import Layout
from jaxgen.run.setup import TOP, set_up
from jaxgen.training import hosts
from jaxgen.training.interrupt import Interrupts
from jaxgen.training.log import read_jsonl
from jaxgen.training.loop import fit
from jaxgen.training.rollcall import roll_call
from jaxgen.training.sharding import make_mesh
from jaxgen.training.weights import read
from tests.running import (
    TINY,
    assert_same_bits,
    free_port,
    raw_state,
    run,
    start_job,
    train_arguments,
    wait_for,
)

STEPS, EARLY = 40, 4
SILENT = 6
OPTIONS = [
    f"train.images={STEPS * 16}",
    "train.log_every=32",
    "checkpoint.every=64",
    "checkpoint.keep_every=64",
    "checkpoint.snapshot_every=0",
    "sample.steps=1",
    "model.width=64",
    f"hosts.silent_seconds={SILENT}",
    "hosts.start_seconds=120",
]
# A lost process is named after `silent_seconds` (or ten, if fewer), then the others stop.
BOUND = SILENT + 20


def arguments(workdir: Path, *overrides: str) -> list[str]:
    return train_arguments(workdir, *OPTIONS, *overrides)


def train_here(workdir: Path, devices: int, *overrides: str, steps: int | None = None) -> None:
    """As the command line trains, on the first `devices` devices of this process."""
    config = configs.load(TINY)
    configs.override(config, [*OPTIONS, *overrides], TOP)
    if steps is not None:
        config.train.images = steps * 16
    parts = set_up(config)
    layout = Layout(make_mesh(devices=jax.devices()[:devices]))
    parts = dataclasses.replace(parts, layout=layout)
    workdir.mkdir(parents=True, exist_ok=True)
    config.train.images = STEPS * 16
    (workdir / "config.json").write_text(configs.to_json(config))
    with Interrupts() as interrupts:
        fit(parts, workdir, interrupts=interrupts)


def assert_close(a, b, tolerance: float):
    """Within `tolerance` of each leaf's largest value."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        limit = tolerance * max(np.abs(y).max(), 1.0)
        np.testing.assert_allclose(x, y, atol=limit, rtol=0, err_msg=str(path))


def losses(workdir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_jsonl(workdir / "metrics.jsonl")}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """One process, eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train_here(workdir, 8)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Two processes of four devices, not interrupted; the second one reads slowly."""
    folder = tmp_path_factory.mktemp("two")
    slow = ["data.source.name=tests.slow_source.digits", "data.prefetch=0"]
    job = start_job(folder, arguments(folder / "run", *slow), count=2, devices=4)
    assert job.wait() == [0, 0], job.said(0) + job.said(1)
    return folder / "run"


def test_two_processes_do_what_one_does(one, two):
    for step, tolerance in ((EARLY, 1e-6), (STEPS, 1e-3)):  # rounding, and what Adam makes of it
        assert_close(raw_state(two, step)[1], raw_state(one, step)[1], tolerance)
    np.testing.assert_allclose(list(losses(two).values()), list(losses(one).values()), rtol=1e-5)


def test_the_slowest_host_is_named(two):
    rows = read_jsonl(two / "metrics.jsonl")
    last = rows[-1]["slowest_host"]
    assert last.startswith("process 1 (") and float(last.split()[-4]) > 0.04, rows[-1]


def test_the_first_process_writes_and_speaks_for_all(two):
    report = json.loads((two / "report.json").read_text())
    assert report["processes"] == 2 and report["device"].startswith("8 x")
    assert (two / "samples" / "final_samples.png").exists() and not list(two.glob(".seen*"))


def rows_after(workdir: Path, count: int):
    """A condition: `count` more lines of metrics than now."""
    before = len(read_jsonl(workdir / "metrics.jsonl"))
    return lambda: len(read_jsonl(workdir / "metrics.jsonl")) >= before + count


@pytest.mark.parametrize("ways", ["two ways", "every way"])
def test_whatever_ends_a_run_the_next_goes_on_exactly(two, tmp_path, ways):
    """One workdir, ended in one way after another, then left to finish."""
    workdir, spans = tmp_path / "run", {}

    def begin(*overrides: str, count: int = 2):
        devices = 8 // count
        return start_job(tmp_path, arguments(workdir, *overrides), count=count, devices=devices)

    def ended(job, index: int, number: int, when, *codes: int) -> str:
        """Signal one process when `when()`; codes: its own and the others'. What another says."""
        wait_for(when, process=job.processes[0])
        clock = time.monotonic()
        job.processes[index].send_signal(number)
        other = 1 if index == 0 else 0
        code = job.processes[other].wait(timeout=120)
        spans[number, index] = time.monotonic() - clock
        if number == signal.SIGSTOP:
            job.processes[index].kill()
        assert (job.wait()[index], code) == codes, job.said(0) + job.said(1)
        return job.said(other)

    def bounded(said: str, *words: str) -> None:
        """The other process named the lost one, in time."""
        assert all(w in said for w in (*words, "run the same command again")), said
        assert list(spans.values())[-1] < BOUND, spans

    killed = -signal.SIGKILL
    # Four processes, one of them killed.
    job = begin(count=4)
    early = workdir / "checkpoints" / "digests" / f"{EARLY}.json"
    said = ended(job, 3, signal.SIGKILL, early.exists, killed, 75)
    bounded(said, "process 3 (", "has not been heard of")
    assert_same_bits(raw_state(workdir, EARLY)[1], raw_state(two, EARLY)[1])
    # Preempted while the step is compiled, or before: one step is done and saved.
    before = raw_state(workdir)[0]
    job = begin()
    said = ended(job, 1, signal.SIGTERM, lambda: "Resuming" in job.said(0), 143, 143)
    assert "stopped by SIGTERM" in said and "Traceback" not in said
    assert raw_state(workdir)[0] == before + 1
    if ways == "every way":
        # Stopped, as if it hung: no connection breaks.
        job = begin()
        said = ended(job, 1, signal.SIGSTOP, rows_after(workdir, 2), killed, 75)
        bounded(said, "process 1 (", "has not been heard of")
        # Process 0 killed: it holds JAX's coordinator, which aborts the others.
        job = begin()
        said = ended(job, 0, signal.SIGKILL, rows_after(workdir, 2), killed, 75)
        bounded(said, "process 0 (", "is gone")
        # Preempted while a checkpoint is being written.
        job = begin()
        before = raw_state(workdir)[0]
        saving = lambda: list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        ended(job, 1, signal.SIGTERM, saving, 143, 143)
        assert before < raw_state(workdir)[0] < STEPS
        # Preempted in the evaluation: training is over and saved.
        job = begin("evaluate.at_end=True", "evaluate.samples=100")
        scoring = lambda: "classifier for the scores" in job.said(0)
        ended(job, 1, signal.SIGTERM, scoring, 143, 143)
        assert raw_state(workdir)[0] == STEPS and not (workdir / "report.json").exists()
    job = begin("evaluate.at_end=True", "evaluate.samples=100")
    assert job.wait() == [0, 0], job.said(0) + job.said(1)
    assert_same_bits(raw_state(workdir)[1], raw_state(two)[1])
    assert losses(workdir)[STEPS] == losses(two)[STEPS]
    found = json.loads((workdir / "receipts" / "evaluate.json").read_text())
    assert all(np.isfinite(s["value"]) for s in found["scores"] if s["value"] is not None)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_of_two_processes_goes_on_in_one(one, two, tmp_path, devices):
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    shutil.copytree(two / "checkpoints" / "20", workdir / "checkpoints" / "20")
    restored = raw_state(workdir)[1]
    train_here(workdir, devices)
    assert raw_state(workdir)[0] == STEPS and min(losses(workdir)) == 22
    assert_close(raw_state(workdir)[1], raw_state(one)[1], 1e-3)
    np.testing.assert_allclose(
        list(losses(workdir).values()), [v for k, v in losses(one).items() if k > 20], rtol=1e-5
    )
    assert_same_bits(restored, raw_state(two, 20)[1])


def test_a_checkpoint_of_one_process_goes_on_in_two(one, tmp_path):
    workdir = tmp_path / "run"
    train_here(workdir, 2, steps=20)
    # The weights cut over all eight devices, so across the processes.
    wide = ["mesh.data=1", "mesh.fsdp=8", "checkpoint.snapshot_every=640"]
    job = start_job(tmp_path, arguments(workdir, *wide), count=2, devices=4)
    assert job.wait() == [0, 0], job.said(0) + job.said(1)
    layout = (workdir / "checkpoints" / str(STEPS) / "state" / "_sharding").read_text()
    assert "fsdp" in layout, "nothing was cut"
    assert "Resuming at step 20" in job.said(0) and job.said(1).count("Resuming") == 0
    assert_close(raw_state(workdir)[1], raw_state(one)[1], 1e-3)
    snapshot, _ = read(workdir / "ema_snapshots" / f"std_0.050_{STEPS * 16:012d}.safetensors")
    assert_same_bits(snapshot, raw_state(workdir)[1]["ema"]["std_0.050"])


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "SLURM_NTASKS"])
def test_workers_that_would_each_train_alone_are_refused(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UsageError, match=f"{variable}: 2 processes were started"):
        hosts.join(hosts.HostOptions())
    hosts.join(hosts.HostOptions(count=1))
    with pytest.raises(UsageError, match="2 processes have joined, but JAX sees the devices of 1"):
        hosts.check_seen(2)


def test_the_command_line_refuses_lonely_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    workdir = tmp_path / "run"
    code, _, err = run(*train_arguments(workdir))
    assert code == 2 and "each would train alone" in err and "Traceback" not in err, err
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(count=0), "config.hosts.count: got 0"),
        (dict(count=2, index=2), "config.hosts.index: got 2"),
        (dict(silent_seconds=0), "config.hosts.silent_seconds"),
        (dict(count=2, coordinator="here"), "config.hosts: got"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        hosts.join(hosts.HostOptions(**options))


def test_processes_of_other_configs_are_refused(tmp_path):
    job = start_job(
        tmp_path,
        arguments(tmp_path / "run"),
        count=2,
        devices=1,
        each=lambda index: [f"--config.seed={index}"],
    )
    assert job.wait(120) == [2, 2], job.said(0) + job.said(1)
    assert "process 1 (" in job.said(0) and "config.seed is 1, not 0" in job.said(0)
    assert not (tmp_path / "run" / "config.json").exists()


def called(count: int, seconds: float, numbers: list[tuple[int, int]]) -> list[BaseException]:
    """What `roll_call` raises in threads that stand for (process, how many it thinks there are)."""
    address, found = f"localhost:{free_port()}", []

    def one(number: int, of: int) -> None:
        try:
            roll_call(address, number, of, seconds)
        except (Lost, UsageError) as error:
            found.append(error)

    threads = [threading.Thread(target=one, args=pair) for pair in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_roll_call_is_answered_or_names_the_missing():
    assert not called(3, 20, [(0, 3), (1, 3), (2, 3)])
    begin = time.monotonic()
    found = called(4, 1, [(0, 4), (2, 4)])
    assert len(found) == 2 and all("process 1, 3 of 4 did not come" in str(e) for e in found)
    found = called(3, 1, [(1, 3), (2, 3)])
    assert len(found) == 2 and all("process 0 of 3 did not come" in str(e) for e in found)
    found = called(2, 20, [(0, 2), (1, 3)])
    assert len(found) == 2 and all("one of 3" in str(e) for e in found)
    assert time.monotonic() - begin < 15


def test_a_missing_worker_ends_the_start_in_time(tmp_path):
    begin = time.monotonic()
    job = start_job(
        tmp_path,
        arguments(tmp_path / "run", "hosts.start_seconds=3"),
        count=3,
        devices=1,
        indices=[0, 2],
    )
    assert job.wait(120) == [75, 75], job.said(0) + job.said(1)
    for index in (0, 1):
        assert "process 1 of 3 did not come within 3 s" in job.said(index), job.said(index)
    assert time.monotonic() - begin < 60 and not (tmp_path / "run").exists()


def test_a_block_that_takes_too_long_ends_the_process():
    text = (
        "import time\n"
        "from jaxgen.training.watch import deadline\n"
        "with deadline(60, 'nothing', 'no'): pass\n"
        "with deadline(0.5, 'saving checkpoint 8', 'config.hosts.save_seconds'): time.sleep(60)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 75 and time.monotonic() - begin < 30
    assert "saving checkpoint 8 has taken longer than 0.5 s" in done.stderr, done.stderr


def test_the_rows_of_a_process_are_those_of_its_devices():
    mesh = make_mesh(2, 2, 2)
    from jaxgen.data import local_rows
    from jaxgen.training.sharding import batch_sharding

    np.testing.assert_array_equal(local_rows(batch_sharding(mesh), 8), np.arange(8))
    assert len(digits.digits()) == 901 and api.train is not None
