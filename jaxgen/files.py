"""Files as jaxgen writes them: whole or not at all, under the umask, and one message where not.

What cannot be written (no space, no permission, a name too long, a folder below a file) is a
`UsageError` that names the file and the reason. `check` finds that out before the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxgen.errors import UsageError, invalid

Place = str | os.PathLike[str]


class Unwritable(UsageError):
    """A file or folder that cannot be written."""


def local(option: str, place: Place) -> Path:
    """A path of this machine, with `~` expanded. Raises UsageError for a URL, which none is."""
    text = os.fspath(place)
    # Also where Path has made `gs:/bucket` of it already.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise invalid(option, text, "a path of this machine", "Mount the bucket, or copy it here.")
    return Path(text).expanduser()


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Turns an OSError of what is done within into `Unwritable`, which names `place`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise Unwritable(f"{os.fspath(place)}: cannot be written: {why}.") from error


def folder(place: Place) -> Path:
    """Make a folder, and those above it. Raises `Unwritable`."""
    with writing(place):
        Path(place).mkdir(parents=True, exist_ok=True)
    return Path(place)


@contextlib.contextmanager
def whole(place: Place) -> Iterator[IO[bytes]]:
    """A stream to a file that appears when the block ends well, and not at all otherwise.

    Written beside it under another name, flushed to the disk and renamed; a link is followed.
    Raises `Unwritable`.
    """
    with writing(place):
        path = _target(place)
    folder(path.parent)
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    try:
        with writing(place):
            # The mode that the umask leaves.
            handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _target(place: Place) -> Path:
    """Where a path leads, links followed. Raises `Unwritable` for a link to nowhere."""
    path = Path(os.path.realpath(place))
    if path.is_symlink() or os.path.islink(place) and not path.parent.is_dir():
        # A disk that is not mounted, say: its folders are not for us to make.
        raise Unwritable(f"{os.fspath(place)}: cannot be written: a link to {path}, not there.")
    return path


def write(place: Place, data: str | bytes) -> None:
    """Write a file, whole or not at all. Raises `Unwritable`."""
    with whole(place) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def write_arrays(place: Place, arrays: Mapping[str, Any]) -> None:
    """Write a .npz file, whole or not at all."""
    with whole(place) as stream:
        np.savez(stream, **arrays)


def json_text(value: Any, indent: int | None = 2) -> str:
    """JSON with sorted keys, of `plain(value)`."""
    return json.dumps(plain(value), indent=indent, sort_keys=True, allow_nan=False)


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts alone; what JSON has no number for is "nan" or "inf"."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_json(place: Place) -> dict[str, Any]:
    """The object of a JSON file. Raises UsageError where it is none, or cannot be read."""
    try:
        content = json.loads(Path(place).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{place}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{place}: holds a {type(content).__name__}; allowed: a JSON object.")
    return content


def check_out(option: str, place: Place, suffixes: Sequence[str]) -> None:
    """`check` of a file whose name ends as it has to."""
    if Path(place).suffix not in suffixes:
        raise invalid(option, os.fspath(place), f"a name that ends in {' or '.join(suffixes)}")
    check(option, local(option, place))


def check(option: str, place: Place, *, directory: bool = False, fix: str | None = None) -> None:
    """Raise UsageError, naming the option, where nothing could be written to `place`.

    Nothing is left behind: a nameless file is opened in the nearest folder that exists. fix: what
    to do then.
    """
    kind = "a folder" if directory else "a file"
    try:
        path = _target(place)
        if path.exists() and path.is_dir() != directory:
            raise invalid(option, os.fspath(place), f"{kind}; this is {_kind(path)}")
        nearest = path if directory else path.parent
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise invalid(option, os.fspath(place), f"{kind} that can be made; {nearest} is a file")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        allowed = f"{kind} that can be written ({why})"
        raise invalid(option, os.fspath(place), allowed, fix) from error


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file"


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of arrays: their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}\0".encode())
        found.update(array.view(np.uint8).reshape(-1).data)
    return found.hexdigest()


@contextlib.contextmanager
def piped() -> Iterator[None]:
    """Ends quietly, with a shell's 141, where nobody reads the output any more (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        raise SystemExit(141) from None
