"""One folder per class, any image files, resized and cropped as ADM does."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from jaxgen.data.source import Source, check_labels
from jaxgen.errors import invalid

# fmt: off
EXTENSIONS = frozenset([
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
])
# fmt: on
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FolderSource(Source):
    """Image files, decoded when asked for. skipped: the undecodable files that were left out."""

    files: tuple[str, ...]
    skipped: tuple[str, ...]

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n, H, W, C] at `indices` [n]; UsageError names a file that fails."""
        size, channels = self.shape[0], self.shape[2]
        found = np.empty((len(indices), *self.shape), np.uint8)
        for row, index in zip(found, indices, strict=True):
            file = self.files[index]
            try:
                row[...] = decode(file, size, channels)
            except _UNREADABLE as error:
                raise _undecodable([(file, str(error))], len(self.files)) from error
        return found


def folder(
    path: str,
    image_size: int,
    split: str = "train",
    channels: int = 3,
    on_error: Literal["raise", "skip"] = "raise",
    verify: bool = True,
) -> FolderSource:
    """Images of `path/CLASS/...` or, where it exists, `path/SPLIT/CLASS/...`: uint8, square.

    Classes are the sub-folders in alphabetical order; files are found at any depth below them, by
    extension. image_size: pixels a side; see `centre_crop`. channels: 1 grey, 3 RGB, 4 RGBA.
    verify: decode every file once when the source is opened (in threads), so that a bad file is
    found before training and not in the middle of it; a file that cannot be decoded later is always
    an error. on_error: "raise" names and counts the bad files; "skip" warns and leaves them out,
    and needs `verify`. Raises UsageError for a missing folder, a split that is not there, no
    classes, and a class without images.
    """
    if on_error not in ("raise", "skip"):
        raise invalid("source.on_error", on_error, "raise, skip")
    if on_error == "skip" and not verify:
        raise invalid("source.verify", verify, "True where on_error is skip")
    if image_size < 1:
        raise invalid("source.image_size", image_size, "an integer >= 1")
    if channels not in _MODES:
        raise invalid("source.channels", channels, "1, 3 or 4")
    root = Path(path)
    if not root.is_dir():
        raise invalid("source.path", path, "an existing folder with one sub-folder per class")
    if (root / split).is_dir():
        root = root / split
    elif split != "train":
        raise invalid("source.split", split, f"train, or a sub-folder of {path}")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise invalid("source.path", str(root), "a folder with one sub-folder per class")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = _image_files(root / name)
        files += found
        labels += [label] * len(found)
    _, names = check_labels(np.array(labels, np.int32), classes)
    keep = np.ones(len(files), bool)
    skipped: list[str] = []
    if verify:
        bad = _failures(files, channels)
        if bad and on_error == "raise":
            raise _undecodable([(files[i], why) for i, why in bad], len(files))
        if bad:
            skipped = [files[i] for i, _ in bad]
            warnings.warn(
                f"source.path {path}: {len(bad)} of {len(files)} images cannot be decoded and are "
                f"left out: {_listed(skipped)}",
                stacklevel=2,
            )
        keep[[i for i, _ in bad]] = False
    kept, _ = check_labels(np.array(labels, np.int32)[keep], classes)
    return FolderSource(
        labels=kept,
        shape=(image_size, image_size, channels),
        class_names=names,
        files=tuple(f for f, k in zip(files, keep, strict=True) if k),
        skipped=tuple(skipped),
    )


def _image_files(root: Path) -> list[str]:
    return sorted(
        str(p)
        for p in root.rglob("*")
        if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
    )


def _failures(files: list[str], channels: int) -> list[tuple[int, str]]:
    """(index, reason) of the files that cannot be decoded, in order."""

    def reason(file: str) -> str | None:
        try:
            with Image.open(file) as image:
                image.convert(_MODES[channels])
        except _UNREADABLE as error:
            return str(error) or type(error).__name__
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(reason, files))
    return [(i, why) for i, why in enumerate(reasons) if why is not None]


def _undecodable(bad: list[tuple[str, str]], total: int) -> Exception:
    return invalid(
        "source.path",
        f"{len(bad)} of {total} images that cannot be decoded: "
        + _listed([f"{file} ({why})" for file, why in bad]),
        f"images that Pillow {PIL.__version__} reads",
        'Mend or delete them, or leave them out with on_error="skip".',
    )


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def decode(file: str, size: int, channels: int) -> np.ndarray:
    """One image file as uint8 [size, size, channels]."""
    with Image.open(file) as image:
        pixels = np.asarray(centre_crop(image.convert(_MODES[channels]), size))
    return pixels.reshape(size, size, channels)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's resize (Dhariwal & Nichol 2021, `center_crop_arr`) of an image to size x size pixels.

    Halve by box filter while the short side is at least twice `size`, then bicubic (with
    antialiasing) so that the short side is `size`, then cut out the centre.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    wide, high = round(image.width * scale), round(image.height * scale)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))
