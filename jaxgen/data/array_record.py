"""Array records of tf.train.Example, as TFDS writes them and as `jaxgen data` does.

A record is a serialised `tf.train.Example` with a feature of an image file's bytes and one of the
label, a number or a name. Where `FEATURE.labels.txt` lies beside the file, as TFDS puts it there, a
line a class, it names the numbers. TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

from jaxgen.data.encoded import EncodedSource, check_size, labels_of, shape_of, shards
from jaxgen.data.pixels import BACKGROUND
from jaxgen.errors import invalid, unknown
from jaxgen.files import local, write

_STEP = 1024


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ArrayRecordSource(EncodedSource):
    """Examples in files of records; only the paths travel to worker processes."""

    files: tuple[str, ...]
    feature: str

    def stored(self, indices: Sequence[int]) -> list[bytes | np.ndarray]:
        """Image files' bytes."""
        records = _open(self.files).__getitems__(list(indices))
        return [
            _bytes(_example(record, self.entry(i)), self.feature, self.entry(i))
            for i, record in zip(indices, records, strict=True)
        ]

    def entry(self, index: int) -> str:
        """A record by its number."""
        return f"record {index} of {_named(self.files)}"


def array_record(
    path: str,
    split: str = "train",
    image: str = "image",
    label: str | None = "label",
    image_size: int | None = None,
    channels: int = 3,
    background: Any = BACKGROUND,
    class_names: tuple[str, ...] = (),
) -> ArrayRecordSource:
    """Images of tf.train.Examples: uint8 [N, H, W, channels], decoded when asked for.

    path: a file, a glob, or `data-{00000..00004}.array_record`; `{split}` stands for the split,
    and without it there is only "train". image, label: names of features; label None: one class.
    image_size: pixels a side, resized and cropped as `folder` does; None: all are of one size.
    channels, background: see `folder.folder`. class_names: label 0 first, where the files do not
    say. Every record is read once, for its label. Raises UsageError for what is not there, records
    of another kind, and labels out of range.
    """
    check_size(image_size, channels, background)
    files = tuple(shards(path, split))
    try:
        records = _open(files)
        count = len(records)
    except Exception as error:  # whatever the reader stumbles over
        raise invalid("source.path", _named(files), "whole array_record files", str(error)) from (
            error
        )
    if not count:
        raise invalid("source.path", _named(files), "files with records")
    first = _example(records[0], f"record 0 of {_named(files)}")
    for option, name in (("source.image", image), ("source.label", label)):
        if name is not None and name not in first.features.feature:
            raise unknown(option, name, first.features.feature)
    values = None if label is None else _labels(files, count, label)
    beside = Path(files[0]).parent / f"{label}.labels.txt"
    if not class_names and values is not None and beside.is_file():
        class_names = tuple(beside.read_text().splitlines())
    labels, names = labels_of(values, count, class_names)
    entry = f"record 0 of {_named(files)}"
    return ArrayRecordSource(
        labels=labels,
        shape=shape_of(_bytes(first, image, entry), entry, image_size, channels),
        class_names=names,
        fit=image_size is not None,
        background=background,
        files=files,
        feature=image,
    )


@functools.lru_cache(maxsize=8)
def _open(files: tuple[str, ...]) -> ArrayRecordDataSource:
    return ArrayRecordDataSource(list(files))


def _named(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _example(record: bytes, entry: str) -> Any:
    """A record's tf.train.Example. Raises UsageError that names the entry."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    allowed = "records that are tf.train.Examples"
    try:
        example.ParseFromString(record)
    except DecodeError as error:
        raise invalid("source.path", entry, allowed, str(error)) from error
    if not example.features.feature:
        raise invalid("source.path", f"{entry}, without features", allowed)
    return example


def _bytes(example: Any, feature: str, entry: str) -> bytes:
    found = example.features.feature[feature].bytes_list.value
    if len(found) != 1:
        given = f"{entry}: {len(found)} texts in feature {feature}"
        raise invalid("source.image", given, "one image file's bytes")
    return bytes(found[0])


def _labels(files: tuple[str, ...], count: int, feature: str) -> list[int] | list[str]:
    """Every record's label: numbers, or names."""
    values: list[Any] = []
    for start in range(0, count, _STEP):
        places = list(range(start, min(start + _STEP, count)))
        for i, record in zip(places, _open(files).__getitems__(places), strict=True):
            entry = f"record {i} of {_named(files)}"
            said = _example(record, entry).features.feature[feature]
            found = [*said.int64_list.value, *map(_text, said.bytes_list.value)]
            odd = len(found) != 1 or found[0] is None
            if odd or (values and type(found[0]) is not type(values[0])):
                given = f"{entry}: feature {feature} of {len(found)} values"
                raise invalid("source.label", given, "one number a record, or one name")
            values.append(found[0])
    return values


def _text(data: bytes) -> str | None:
    """Bytes as text; None where they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def write_records(
    file: str | Path, examples: Iterable[tuple[bytes, int]], class_names: Sequence[str]
) -> int:
    """Write (image file's bytes, label) to a file that appears when it is whole; returns how many.

    The names go to `label.labels.txt` beside it. Raises UsageError for a folder whose names are
    others, and for names that a line cannot hold.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    path = local("--out", file)
    text = "".join(f"{name}\n" for name in class_names)
    names = path.parent / "label.labels.txt"
    if text.splitlines() != list(class_names):
        raise invalid("class names", list(class_names), "names of one line each")
    if names.is_file() and names.read_text() != text:
        raise invalid("--out", str(names), "the same classes, or another folder")
    write(names, text)
    partial = path.with_name(f".{path.name}.partial")
    writer, count = ArrayRecordWriter(str(partial), "group_size:1"), 0
    for data, label in examples:
        example = tf_example_pb2.Example()
        feature: Mapping[str, Any] = example.features.feature
        feature["image"].bytes_list.value.append(data)
        feature["label"].int64_list.value.append(int(label))
        writer.write(example.SerializeToString(deterministic=True))
        count += 1
    writer.close()
    partial.replace(path)
    return count
