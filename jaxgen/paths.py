"""Paths that people give: `~` is their home, and what is not on this machine is refused at once."""

from __future__ import annotations

import re
from pathlib import Path

from jaxgen.errors import invalid

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(option: str, path: str | Path) -> Path:
    """A path of this machine, `~` expanded.

    Raises UsageError, naming `option`, for an address such as gs://bucket/data, of which Path would
    make a folder called "gs:" (also where Path has already made `gs:/bucket` of it).
    """
    if _REMOTE.match(str(path)):
        raise invalid(
            option,
            str(path),
            "a path of this machine",
            "Mount the bucket (gcsfuse, s3fs, rclone mount) and give the path below the mount.",
        )
    return Path(path).expanduser()
