"""One training a workdir at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from jaxgen import files
from jaxgen.errors import UsageError
from jaxgen.training import hosts
from jaxgen.training.log import say

NAME = ".lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a workdir's lock. Raises UsageError that names the process which has it.

    The system lets go of it when a process ends, however it does, so nothing is left to clean up.
    Of many processes of one run the first holds it.
    """
    if not hosts.first():
        yield
        return
    path = files.folder(workdir) / NAME
    with files.writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"--workdir: {workdir} is being trained by {_holder(path)}. Wait for it, stop it, "
                "or choose another folder."
            ) from error
        except OSError as error:  # a file system without locks
            say(f"WARNING: {workdir} cannot be locked ({error.strerror}): train in it only once.")
        with files.writing(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_own()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _own() -> dict[str, object]:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": started}


def _holder(path: Path) -> str:
    try:
        said = files.read_json(path)
        return f"process {said['process']} on {said['host']}, since {said['since']}"
    except (UsageError, KeyError):
        return "another process"
