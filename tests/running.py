"""Start the real command line in a process of its own; read what a run left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from jaxgen.api import load

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
