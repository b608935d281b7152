"""WebDataset's tar shards with random access: the tars' headers are read once, the images as asked.

A shard is a plain tar in which files that share a name up to its first dot are one example:
`0001.jpg` and `0001.cls`. https://github.com/webdataset/webdataset says more of the format.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.data.encoded import EncodedSource, check_size, labels_of, shape_of, shards
from jaxgen.data.pixels import BACKGROUND, extensions
from jaxgen.errors import invalid, unknown

# (byte offset, bytes) of a file in its tar.
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TarSource(EncodedSource):
    """Examples in tars. shard: int [N], which of the files; offset, length: int [N], of the image.

    keys: the examples' names.
    """

    files: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    keys: tuple[str, ...]

    def stored(self, indices: Sequence[int]) -> list[bytes | np.ndarray]:
        """Image files' bytes."""
        return [
            _read(self.files[self.shard[i]], (int(self.offset[i]), int(self.length[i])))
            for i in indices
        ]

    def entry(self, index: int) -> str:
        """An example by its tar and its name there."""
        return f"{self.keys[index]} in {self.files[self.shard[index]]}"


def webdataset(
    path: str,
    split: str = "train",
    image: str | None = None,
    label: str | None = "cls",
    image_size: int | None = None,
    channels: int = 3,
    background: Any = BACKGROUND,
    class_names: tuple[str, ...] = (),
) -> TarSource:
    """Images in tar shards: uint8 [N, H, W, channels], decoded when asked for.

    path: a tar, a glob, or `shard-{000000..000127}.tar`; `{split}` stands for the split, and
    without it there is only "train". image: the images' extension, "jpg" for example; None: the one
    in each example that an image may have. label: "cls" (a number), "txt" (a class name), any other
    extension with such a text, or "json:FIELD", of which a field is one of the two; None: one
    class. class_names: label 0 first, where labels are numbers. image_size: pixels a side,
    resized and cropped as `folder` does; None: all are of one size. channels, background: see
    `folder.folder`. Hidden files are left out. Raises UsageError for tars that are missing, cut off
    or compressed, examples without image or label, and labels out of range.
    """
    check_size(image_size, channels, background)
    files = tuple(shards(path, split))
    if label == "json":
        raise invalid("source.label", label, "json:FIELD, as in json:label")
    shard: list[int] = []
    places: list[Place] = []
    keys: list[str] = []
    values: list[Any] = []
    for number, file in enumerate(files):
        for key, parts in _examples(file):
            entry = f"{key} in {file}"
            chosen = _image(parts, image, entry)
            if chosen is None:
                continue
            shard.append(number)
            places.append(parts[chosen])
            keys.append(key)
            if label is not None:
                values.append(_label(file, parts, label, entry))
                if type(values[-1]) is not type(values[0]):
                    given = f"{values[-1]!r} of {entry}, and {values[0]!r} of {keys[0]}"
                    raise invalid("source.label", given, "numbers alone, or names alone")
    if not keys:
        wanted = "images" if image is None else f".{image} files"
        raise invalid("source.path", path, f"tars with {wanted}")
    labels, names = labels_of(None if label is None else values, len(keys), class_names)
    first = _read(files[shard[0]], places[0])
    offset, length = np.array(places, np.int64).T
    return TarSource(
        labels=labels,
        shape=shape_of(first, f"{keys[0]} in {files[shard[0]]}", image_size, channels),
        class_names=names,
        fit=image_size is not None,
        background=background,
        files=files,
        shard=np.array(shard),
        offset=offset,
        length=length,
        keys=tuple(keys),
    )


def _examples(file: str) -> Iterator[tuple[str, dict[str, Place]]]:
    """(name, extension -> where it lies) of each example of a tar, in its order."""
    key, parts = "", dict[str, Place]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith(".") or "." not in name:
                    continue
                stem, _, extension = name.partition(".")
                full, extension = f"{folder}/{stem}".lstrip("/"), extension.lower()
                if full != key or extension in parts:
                    if parts:
                        yield key, parts
                    key, parts = full, {}
                parts[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        fix = f"{error}. Of a compressed tar no part can be read by itself: unpack it (gunzip)."
        raise invalid("source.path", file, "a whole, uncompressed tar", fix) from error
    if parts:
        end = max(start + size for start, size in parts.values())
        if end > os.path.getsize(file):
            given = f"{file}, which ends within {key}"
            raise invalid("source.path", given, "a whole, uncompressed tar", "It is cut off.")
        yield key, parts


def _image(parts: Mapping[str, Place], image: str | None, entry: str) -> str | None:
    """The extension of an example's image; None of an example without any image."""
    if image is not None:
        if image.lower() not in parts:
            raise unknown(f"source.image: {entry}", image, parts)
        return image.lower()
    found = [extension for extension in parts if f".{extension}" in extensions()]
    if len(found) > 1:
        raise invalid("source.image", None, " or ".join(found), f"There are several in {entry}.")
    return found[0] if found else None


def _label(file: str, parts: Mapping[str, Place], label: str, entry: str) -> int | str:
    """An example's label: a whole number, or a name."""
    extension, colon, field = label.partition(":")
    if extension.lower() not in parts:
        raise unknown(f"source.label: {entry}", extension, parts)
    text = _read(file, parts[extension.lower()])
    try:
        said: Any = text.decode().strip()
        if colon:
            record = json.loads(said)
            if not isinstance(record, dict) or field not in record:
                raise unknown(
                    f"source.label: {entry}", field, record if isinstance(record, dict) else ()
                )
            said = record[field]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise invalid("source.label", entry, "text, or JSON", str(error)) from error
    if isinstance(said, str) and extension == "cls":
        try:
            return int(said)
        except ValueError as error:
            hint = 'Names are read with label="txt", or whatever extension they have.'
            raise invalid("source.label", f"{said!r} of {entry}", "a number", hint) from error
    if isinstance(said, bool) or not isinstance(said, int | str) or said == "":
        raise invalid("source.label", f"{said!r} of {entry}", "a whole number, or a name")
    return said


def _read(file: str, place: Place) -> bytes:
    """A part of a file."""
    offset, length = place
    with open(file, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)
