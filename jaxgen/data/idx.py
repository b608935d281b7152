"""The IDX files of MNIST, Fashion-MNIST and their relatives, from a folder, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from jaxgen.data.source import ArraySource, check_split, in_memory
from jaxgen.errors import invalid
from jaxgen.files import local

_PREFIX = {"train": "train", "test": "t10k"}


def idx(
    path: str,
    split: Literal["train", "test"] = "train",
    channels: int = 1,
    class_names: tuple[str, ...] = (),
) -> ArraySource:
    """MNIST-like data: uint8 [N, H, W, channels] and labels from a folder of IDX files.

    path: the folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
    `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` (also spelled `.idx3-ubyte`), each
    with or without `.gz`. Raises UsageError for a missing folder or file, a wrong magic number, a
    truncated or overlong file, and counts that differ.
    """
    check_split(split, tuple(_PREFIX))
    folder = local("source.path", path)
    if not folder.is_dir():
        raise invalid("source.path", path, "an existing folder of IDX files")
    images = read_idx(_find(folder, f"{_PREFIX[split]}-images", "idx3-ubyte"), dimensions=3)
    labels = read_idx(_find(folder, f"{_PREFIX[split]}-labels", "idx1-ubyte"), dimensions=1)
    return in_memory(images, labels, channels=channels, class_names=class_names)


def _find(folder: Path, stem: str, suffix: str) -> Path:
    names = [f"{stem}{dot}{suffix}{zipped}" for zipped in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise invalid("source.path", str(folder), f"a folder that holds {names[0]} or {names[2]}")


def read_idx(file: Path, *, dimensions: int) -> np.ndarray:
    """One IDX file of unsigned bytes as uint8 with `dimensions` axes.

    The format (LeCun's MNIST page): two zero bytes, type 0x08, the number of axes; each axis as a
    big-endian uint32; the bytes. Raises UsageError where the file is anything else.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise invalid(
            "source.path", str(file), "a whole gzip file", f"It is truncated or damaged ({error})."
        ) from error
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if data[:4] != magic or len(data) < header:
        raise invalid(
            "source.path",
            f"{file} that begins with {data[:4].hex()}",
            f"an IDX file of bytes with {dimensions} axes, which begins with {magic.hex()}",
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "too long"
        raise invalid(
            "source.path",
            f"{file} of {len(data)} bytes",
            f"{expected} bytes, as its header says (shape {shape})",
            f"The file is {state}: fetch it again.",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
