"""Start the real command line in a process of its own, or call it here; read what a run left."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxgen.api import load
from jaxgen.cli import main

TINY = "tests/tiny.py"


def start(*arguments: str, first: Callable[[], None] | None = None, **kwargs) -> subprocess.Popen:
    """`python -m jaxgen ARGUMENTS` on one CPU device; the new process calls `first` before all."""
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}

    def prepare():
        # A shell's background job ignores Ctrl-C, and its children would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first is not None:
            first()

    return subprocess.Popen(
        [sys.executable, "-m", "jaxgen", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        **kwargs,
    )


def run(*arguments: str, **kwargs) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = start(*arguments, **kwargs)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def run_here(*arguments: str) -> tuple[int, str, str]:
    """The same in this process, so on its eight devices: for tests of what a command does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def train_arguments(workdir: Path, *overrides: str) -> list[str]:
    return ["train", "--config", TINY, "--workdir", str(workdir)] + [
        f"--config.{o}" for o in overrides
    ]


def wait_for(condition, seconds: float = 300, process: subprocess.Popen | None = None) -> None:
    """Return when condition() is true; fail if the process ends first or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def final_state(workdir: Path):
    """Every named set of parameters of a workdir, on the host."""
    return jax.device_get(load(workdir).params)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Job:
    """The processes of one run on this machine; what process i prints on stderr is in `errors`."""

    processes: list[subprocess.Popen]
    errors: list[Path]

    def said(self, index: int) -> str:
        return self.errors[index].read_text()

    def wait(self, seconds: float = 300) -> list[int]:
        """Exit codes of all, within `seconds` in all."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError("".join(self.said(i) for i in range(len(self.errors)))) from None
        finally:
            for process in self.processes:
                process.kill()
                process.wait()


def start_job(
    folder: Path,
    arguments: list[str],
    *,
    count: int,
    devices: int,
    indices: list[int] | None = None,
    each: Callable[[int], list[str]] = lambda index: [],
) -> Job:
    """`python -m jaxgen ARGUMENTS` as `count` processes with `devices` CPU devices each.

    indices: which of them to start (None: all). each(index): more arguments of one process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, stamp = free_port(), time.monotonic_ns()
    processes, errors = [], []
    for index in range(count) if indices is None else indices:
        errors.append(folder / f"stderr_{stamp}_{index}")
        env = {
            **os.environ,
            "XLA_FLAGS": re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"]),
            "PYTHONUNBUFFERED": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        with errors[-1].open("w") as stream:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jaxgen", *arguments, *each(index)],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                )
            )
    return Job(processes, errors)


def raw_state(workdir: Path, step: int | None = None):
    """(step, arrays as saved) of a checkpoint, the newest by default: all of the state."""
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    step = max(steps) if step is None else step
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        there = checkpointer.metadata(path).item_metadata.tree
        # As NumPy arrays: the devices that wrote it need not be here.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        return step, checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))
