"""Images and labels in a NumPy .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgen.data.classes import mismatch
from jaxgen.data.source import ArraySource, in_memory
from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.files import local

CONVENTIONS = ("clip", "class_names")
"""What arrays of samples say of themselves (`jaxgen sample --out x.npz`)."""


def arrays(
    path: str,
    split: str = "train",
    images_key: str = "images",
    labels_key: str = "labels",
    channels: int | None = None,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    range: str | None = None,
) -> ArraySource:
    """An .npz file with images [N, H, W(, C)] and labels [N].

    `{split}` in `path`, `images_key` or `labels_key` stands for the split: "data/{split}.npz", or
    Keras's mnist.npz with "x_{split}" and "y_{split}". Without it the file has only "train". No
    pickles are read. columns: further arrays [N, ...] that batches hold under their names, such as
    "group" (which of two is it of), "mask" [N, H, W, 1], or "mask_{split}", whose name is mask.
    range: what the numbers of images run from and to, "-1,1", "0,1" or "0,255", which bytes and
    floats with negative ones need not say. class_names: label 0 first, where the file has not got
    an array `class_names` itself. What `jaxgen sample --out x.npz` wrote is read as it stands.
    Raises UsageError for what is missing, unreadable or of another shape.
    """
    fill_split(split, path, images_key, labels_key)
    file = local("source.path", path.replace("{split}", split))
    keys = [k.replace("{split}", split) for k in (images_key, labels_key, *columns)]
    stored = read_npz(file, keys, CONVENTIONS)
    images, labels, *rest = (stored[key] for key in keys)
    if "clip" in stored and images.dtype.kind == "f":
        images, range = clipped(images, stored["clip"], option=f"source.path {file}"), "-1,1"
    if "class_names" in stored:
        names_here = named(stored["class_names"], option=f"source.path {file}")
        if class_names and tuple(class_names) != names_here:
            raise mismatch("source.class_names", class_names, names_here, f"those of {file}")
        class_names = names_here
    names = [c.replace("{split}", "").strip("_") for c in columns]
    return in_memory(
        images,
        labels,
        channels=channels,
        num_classes=num_classes,
        class_names=class_names,
        columns=dict(zip(names, rest, strict=True)),
        range=range,
    )


def clipped(images: np.ndarray, clip: np.ndarray, *, option: str) -> np.ndarray:
    """Images of a file that says where they end: values beyond are meant to be the ends.

    Samplers leave values a little beyond. Raises UsageError for other ends than -1 and 1.
    """
    if clip.tolist() != [-1.0, 1.0]:
        raise invalid(option, f"clip {clip.tolist()}", "clip [-1.0, 1.0]")
    return np.clip(images, -1.0, 1.0)


def named(names: np.ndarray, *, option: str) -> tuple[str, ...]:
    """The class names that a file has, label 0 first; UsageError for what are no names."""
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names):
        raise invalid(
            option, f"class_names {names.dtype} {names.shape}", "texts [C], all different"
        )
    return tuple(names.tolist())


def fill_split(split: str, *patterns: str) -> None:
    """Raises UsageError if a split other than "train" is asked of data that has no `{split}`."""
    if split != "train" and not any("{split}" in pattern for pattern in patterns):
        raise invalid(
            "source.split", split, "train", 'Say where it is: path="data/{split}.npz", for example.'
        )


def read_npz(
    file: Path, keys: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays `keys` (None: all) of an .npz file, no pickles; UsageError for what is wrong.

    optional: further ones that it may have.
    """
    if not file.is_file():
        raise invalid("source.path", str(file), "an existing .npz file")
    try:
        data = np.load(file, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise invalid("source.path", str(file), "an .npz file, not a single array")
        with data:
            keys = data.files if keys is None else keys
            for key in keys:
                if key not in data.files:
                    raise unknown(f"source.path {file}", key, data.files)
            there = [key for key in optional if key in data.files]
            return {key: data[key] for key in (*keys, *there)}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise invalid("source.path", str(file), "a whole .npz file", str(error)) from error
    except UsageError:
        raise
    except ValueError as error:
        fix = f"It holds Python objects ({error})."
        raise invalid("source.path", str(file), "an .npz file without pickles", fix) from error
