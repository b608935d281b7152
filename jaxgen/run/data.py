"""The real images as a model sees them, written out, and what there is to say of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import ml_collections
import numpy as np

from jaxgen import config as configs
from jaxgen import files
from jaxgen.data import Source, Target
from jaxgen.data.array_record import write_records
from jaxgen.data.folder import RESIZER, squares
from jaxgen.data.holdout import held_out
from jaxgen.data.pixels import MODES, png
from jaxgen.data.walk import hidden
from jaxgen.errors import UsageError, invalid
from jaxgen.metrics.sets.quantise import adm, quantise
from jaxgen.run.setup import DataOptions, open_source
from jaxgen.training.log import progress

Format = Literal["folder", "npz", "array_record"]
FORMATS: tuple[Format, ...] = ("folder", "npz", "array_record")
_CHUNK = 512


def write_data(
    config: ml_collections.ConfigDict,
    out: str | Path | None = None,
    *,
    split: Literal["train", "test"] = "train",
    format: Format | None = None,
    npz: Literal["jaxgen", "adm"] = "jaxgen",
    image_size: int | None = None,
) -> dict[str, Any]:
    """Write a half of a config's images as training sees them, before they are mirrored.

    out: a folder, a .npz or a .array_record; None: nothing is written. format: of these; None: as
    `out` ends; of a path that ends otherwise, SPLIT.npz or SPLIT.array_record in it. npz: as in
    `api.Output`. image_size: pixels a side that images get; None: what training sees. Folders hold
    a sub-folder a class. All of them are sources of data, and `evaluate` reads the first two.

    Returns what the half is: {"split", "images", "shape", "classes": name -> images, "flip",
    "holdout", "notes", "out", "format", "resize"}. Raises UsageError for examples that are no
    images, names that cannot be folders, and where nothing can be written.
    """
    kind, path = (None, None) if out is None else _where(out, format, split)
    if path is None and format is not None:
        raise invalid("--format", format, "with --out")
    if npz != "jaxgen" and kind != "npz":
        raise invalid("--npz", npz, "with --out x.npz")
    if split not in ("train", "test"):
        raise invalid("--split", split, "train, test")
    if image_size is not None and image_size < 1:
        raise invalid("--image_size", image_size, "pixels >= 1")
    if path is not None:
        files.check("--out", path, directory=kind == "folder")
    options = DataOptions(**configs.check(DataOptions, dict(config.data), "config.data"))
    train, test, held = halves(options, test=split == "test")
    source = train if test is None or split == "train" else test
    coded = source.tokens or source.coding is not None or isinstance(source, Target)
    if coded or len(source.shape) != 3 or source.shape[-1] not in MODES:
        raise invalid("config.data.source", f"examples {source.shape}", "images of 1 to 4 channels")
    if kind == "folder" and path is not None:
        _check_folder(path, source)

    def images(indices: np.ndarray) -> np.ndarray:
        found = quantise(source.images(indices))
        return found if image_size is None else squares(found, image_size)

    if path is not None:
        _WRITERS[kind or "folder"](path, source, images, npz)
    counts = np.bincount(source.labels, minlength=source.num_classes)
    sizes = {} if image_size is None else {"resize": RESIZER}
    return {
        "split": split,
        "images": len(source),
        "shape": [image_size or n for n in source.shape[:2]] + [source.shape[2]],
        "classes": dict(zip(source.class_names, counts.tolist(), strict=True)),
        "flip": options.flip,
        "holdout": held,
        "notes": list(source.notes),
        "out": None if path is None else str(path),
        "format": kind,
        **sizes,
    }


def halves(data: DataOptions, *, test: bool) -> tuple[Source, Source | None, dict[str, Any] | None]:
    """(training half, test half, what is held out), before any run; labels are the training's.

    test: whether the test half is wanted, where it is a split of its own.
    """
    train = open_source(data, data.train)
    if data.holdout:
        return held_out(train, data.holdout, data.holdout_seed)
    if not test:
        return train, None, None
    other = open_source(data, data.test)
    how: dict[str, Any] = dict(whose="the training half", fewer=True)
    return train, other.relabelled(train.class_names, "config.data.test", **how), None


def _where(out: str | Path, format: str | None, split: str) -> tuple[Format, Path]:
    """What is written, and to where."""
    path = files.local("--out", out)
    own: dict[str, Format] = {".npz": "npz", ".array_record": "array_record"}
    found = own.get(path.suffix.lower())
    if format is None:
        return found or "folder", path
    kind = next((each for each in FORMATS if each == format), None)
    if kind is None:
        raise invalid("--format", format, ", ".join(FORMATS))
    if found not in (None, kind):
        raise invalid("--format", format, f"{found}, as {path} ends")
    return kind, path if found or kind == "folder" else path / f"{split}.{kind}"


def _check_folder(path: Path, source: Source) -> None:
    """Refuse a folder with anything in it, and names of classes that cannot be folders."""
    if path.is_dir() and any(path.iterdir()):
        raise invalid("--out", str(path), "a new or an empty folder")
    bad = [n for n in source.class_names if not n or hidden(n) or "/" in n or "\0" in n]
    if bad or len({name.lower() for name in source.class_names}) < source.num_classes:
        given = f"classes {', '.join(map(repr, bad or source.class_names))}"
        raise invalid("--out", given, "names that can be folders", "Or write x.npz.")


def _encoded(
    source: Source, images: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[int, bytes, int]]:
    """(place, an image as PNG, label) of every example, with progress."""
    with progress("data", len(source)) as advance:
        for start in range(0, len(source), _CHUNK):
            places = np.arange(start, min(start + _CHUNK, len(source)))
            for place, image in zip(places.tolist(), images(places), strict=True):
                yield place, png(image), int(source.labels[place])
            advance(int(places[-1]) + 1)


def _write_folder(path: Path, source: Source, images: Any, npz: str) -> None:
    """A sub-folder a class; the folder appears when it is whole."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    digits = max(6, len(str(len(source) - 1)))
    try:
        for name in source.class_names:
            files.folder(partial / name)
        for place, data, label in _encoded(source, images):
            # One by one: a disk flush for each of a million is a day.
            file = partial / source.class_names[label] / f"{place:0{digits}d}.png"
            with files.writing(file):
                file.write_bytes(data)
        with files.writing(path):
            if path.is_dir():
                path.rmdir()
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)


def _write_npz(path: Path, source: Source, images: Any, npz: str) -> None:
    """Arrays as `api.Output` writes them, or as ADM's evaluator reads them."""
    with progress("data", len(source)) as advance:
        first = images(np.arange(1))
        found = np.empty((len(source), *first.shape[1:]), np.uint8)
        for start in range(0, len(source), _CHUNK):
            stop = min(start + _CHUNK, len(source))
            found[start:stop] = images(np.arange(start, stop))
            advance(stop)
    if npz == "adm":
        files.write_arrays(path, adm(found, source.labels))
        return
    arrays = {"images": found, "labels": source.labels}
    files.write_arrays(path, arrays | {"class_names": np.array(source.class_names, np.str_)})


def _write_records(path: Path, source: Source, images: Any, npz: str) -> None:
    files.folder(path.parent)
    pairs = ((data, label) for _, data, label in _encoded(source, images))
    try:
        write_records(path, pairs, source.class_names)
    except UsageError:
        raise
    except OSError as error:
        raise files.Unwritable(f"{path}: cannot be written: {error}.") from error


_WRITERS = {"folder": _write_folder, "npz": _write_npz, "array_record": _write_records}
