"""Hugging Face data sets: of the hub, parquet files, and what `save_to_disk` wrote.

`datasets` (the extra `hf`) is imported when a source is opened, not before.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.encoded import EncodedSource, check_size, labels_of, shape_of
from jaxgen.data.pixels import BACKGROUND
from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.files import local


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HfSource(EncodedSource):
    """Rows of a `datasets.Dataset`, memory-mapped and picklable; of the column `key`."""

    rows: Any
    dataset: str
    key: str

    def stored(self, indices: Sequence[int]) -> list[bytes | np.ndarray]:
        """Image files' bytes, or pixels."""
        found = self.rows[list(indices)][self.key]
        return [_stored(value, self.entry(i)) for i, value in zip(indices, found, strict=True)]

    def entry(self, index: int) -> str:
        """A row by its number."""
        return f"row {index} of {self.dataset}"


def hf(
    path: str,
    split: str = "train",
    image: str = "image",
    label: str | None = "label",
    subset: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
    channels: int = 3,
    background: Any = BACKGROUND,
    class_names: tuple[str, ...] = (),
) -> HfSource:
    """A data set by `datasets`: uint8 [N, H, W, channels], decoded when asked for.

    path: a name on the hub ("uoft-cs/cifar10"), a folder of parquet files, which may be named
    for their splits, one such file or a glob, or a folder by `save_to_disk`. split: as `datasets`
    has it, slices such as "train[:90%]" included. image: the column of pictures: images, image
    files' bytes, or arrays of bytes. label: the column of classes: ClassLabel, numbers or names;
    None: one class. subset, revision: of a data set on the hub, its configuration and its version.
    class_names: label 0 first, where the column does not say. image_size: pixels a side, resized
    and cropped as `folder` does; None: all are of one size. channels, background: see
    `folder.folder`. What comes from the hub is kept where `datasets` keeps it (HF_HOME). Raises
    UsageError for what is not there, columns that are not or hold something else, and labels out of
    range.
    """
    check_size(image_size, channels, background)
    rows = _rows(path, split, subset, revision)
    for option, name in (("source.image", image), ("source.label", label)):
        if name is not None and name not in rows.column_names:
            raise unknown(option, name, rows.column_names)
    if not len(rows):
        raise invalid("source.split", split, f"a split of {path} with examples")
    rows, values = _undecoded(rows, image), None
    if label is not None:
        values = list(rows.select_columns(label)[:][label])
        said = getattr(rows.features[label], "names", None)
        class_names = tuple(said) if said and not class_names else class_names
        _check_labels(values, path, label)
    labels, names = labels_of(values, len(rows), class_names)
    rows = rows.select_columns(image)
    first = _stored(rows[0][image], f"row 0 of {path}")
    return HfSource(
        labels=labels,
        shape=shape_of(first, f"row 0 of {path}", image_size, channels),
        class_names=names,
        fit=image_size is not None,
        background=background,
        rows=rows,
        dataset=path,
        key=image,
    )


def _rows(dataset: str, split: str, subset: str | None, revision: str | None) -> Any:
    """The split as a `datasets.Dataset`. Raises UsageError in the place of whatever is wrong."""
    try:
        import datasets
    except ImportError as error:
        allowed = "the package `datasets`"
        raise invalid("source", "hf.hf", allowed, 'pip install "jaxgen[hf]"') from error
    # No bar for every step of what takes a moment.
    datasets.disable_progress_bars()
    place = local("source.path", dataset)
    kept = {"revision": revision} if revision else {}
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            return _saved(datasets.load_from_disk(str(place)), split)
        if place.is_dir():
            return datasets.load_dataset(str(place), subset, split=split)
        files = sorted(glob.glob(str(place)))
        if files or place.suffix == ".parquet":
            if not files:
                raise invalid("source.path", dataset, "parquet files that exist")
            return datasets.load_dataset("parquet", data_files={"train": files}, split=split)
        if os.path.isabs(place) or dataset.startswith((".", "~")):
            raise invalid("source.path", dataset, "a folder or files that exist")
        return datasets.load_dataset(dataset, subset, split=split, **kept)
    except UsageError:
        raise
    except Exception as error:  # `datasets` has an error of its own for each way to fail
        said = " ".join(str(error).split())[:300]
        option = "source.split" if "split" in said.lower() else "source.path"
        given = split if option == "source.split" else dataset
        allowed = f"a split of {dataset}" if given == split else "a name on the hub, or local files"
        raise invalid(option, given, allowed, f"{type(error).__name__}: {said}") from error


def _saved(found: Any, split: str) -> Any:
    """A split of what `save_to_disk` wrote: of a DatasetDict, or a Dataset alone ("train")."""
    if not hasattr(found, "keys"):
        if split != "train":
            raise invalid("source.split", split, "train: this folder holds one data set")
        return found
    if split not in found:
        raise unknown("source.split", split, found)
    return found[split]


def _undecoded(rows: Any, image: str) -> Any:
    """The rows with images as their files' bytes. Raises UsageError for a column of others."""
    import datasets

    feature = rows.features[image]
    if isinstance(feature, datasets.Image):
        return rows.cast_column(image, datasets.Image(decode=False))
    plain = getattr(feature, "dtype", "")
    arrays = plain == "uint8" or str(feature).startswith(("List", "Sequence", "LargeList"))
    structs = isinstance(feature, Mapping) and "bytes" in feature
    if plain in ("binary", "large_binary") or arrays or structs:
        return rows
    raise invalid("source.image", image, "a column of images, of bytes or of uint8 arrays",
                  f"It is of {feature}.")  # fmt: skip


def _stored(value: Any, entry: str) -> bytes | np.ndarray:
    """A cell of the images' column: an image file's bytes, or pixels."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        path = value.get("path")
        if path and Path(path).is_file():
            return Path(path).read_bytes()
        raise invalid("source.image", f"{entry}, without bytes and without a file", "images")
    if value is None:
        raise invalid("source.image", f"{entry}, which is empty", "an image in every row")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise invalid("source.image", f"{entry} ({error})", "arrays of uint8") from error
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array


def _check_labels(values: Sequence[Any], dataset: str, label: str) -> None:
    """Raises UsageError for labels that are neither whole numbers nor texts, naming the row."""
    kind = str if values and isinstance(values[0], str) else int
    for i, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            given = f"{value!r} in row {i} of {dataset}"
            raise invalid("source.label", given, f"whole numbers, or names, in every {label!r}")
