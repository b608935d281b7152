"""One folder per class, any image files, resized and cropped as ADM does."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image

from jaxgen.data.pixels import (
    BACKGROUND,
    MODES,
    UndecodableError,
    colour,
    of_pixels,
    opened,
    with_channels,
)
from jaxgen.data.source import Source, check_labels
from jaxgen.data.walk import listing, unlabelled
from jaxgen.errors import invalid
from jaxgen.files import local

# Fewer are decoded before threads have begun.
_WORTH_THREADS = 64


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FolderSource(Source):
    """Image files, decoded when asked for. skipped: the undecodable files that were left out."""

    files: tuple[str, ...]
    skipped: tuple[str, ...]
    background: Any = BACKGROUND

    @property
    def dtype(self) -> np.dtype:
        """Bytes, which needs no file opened."""
        return np.dtype(np.uint8)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n, H, W, C] at `indices` [n]; UsageError names a file that fails."""
        size, channels = self.shape[0], self.shape[2]

        def one(index: int) -> np.ndarray:
            file = self.files[index]
            try:
                return decode(file, size, channels, self.background)
            except UndecodableError as error:
                raise _undecodable([(file, str(error))], len(self.files)) from error

        return stacked(one, indices, self.shape)


def stacked(
    one: Callable[[Any], np.ndarray], indices: Sequence[Any] | np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """one(index) of each, uint8 [n, *shape]; of many in threads."""
    found = np.empty((len(indices), *shape), np.uint8)
    if len(indices) < _WORTH_THREADS:
        for row, index in zip(found, indices, strict=True):
            row[...] = one(index)
        return found
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, image in zip(found, pool.map(one, indices), strict=True):
            row[...] = image
    return found


def folder(
    path: str,
    image_size: int,
    split: str = "train",
    channels: int = 3,
    on_error: Literal["raise", "skip"] = "raise",
    verify: bool = False,
    background: Any = BACKGROUND,
    splits: bool | None = None,
    class_names: tuple[str, ...] = (),
    one_class: bool = False,
) -> FolderSource:
    """Images of `path/CLASS/...` or, where there are splits, `path/SPLIT/CLASS/...`: uint8, square.

    Classes are the sub-folders, numbers in their names by value (2 before 10), or what a
    `dataset.json` says (`walk.listing`); files are found at any depth below them, by extension.
    Opening decodes nothing: a file that cannot be decoded is an error that names it when it is met.
    image_size: pixels a side; see `centre_crop`. channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
    background: what is seen through transparent images of 1 and 3 channels, such as "black".
    verify: decode every file once when the source is opened (in threads). on_error: "raise" names
    and counts the bad files; "skip" verifies, says them and leaves them out. splits: whether the
    sub-folders are splits or classes, where names and contents do not say. class_names: the
    classes in another order, label 0 first. one_class: all images are of one class, "all", whatever
    folders they lie in; splits are then splits only if `splits` says so. Raises UsageError for a
    missing folder, a split that is not there, no classes, and a class without images.
    """
    if on_error not in ("raise", "skip"):
        raise invalid("source.on_error", on_error, "raise, skip")
    if image_size < 1:
        raise invalid("source.image_size", image_size, "an integer >= 1")
    if channels not in MODES:
        raise invalid("source.channels", channels, "1, 2, 3 or 4")
    colour(background)
    root = local("source.path", path)
    if not root.is_dir():
        raise invalid("source.path", path, "an existing folder with one sub-folder per class")
    look = unlabelled if one_class else listing
    found = look(root, option="source.path", split=split, splits=splits)
    if found.labels is None:
        given = f"{found.root} with {len(found.files)} images of no class"
        fix = "As one class, they are trained on with source.one_class=True."
        allowed = "a folder with one sub-folder per class"
        raise invalid("source.path", given, allowed, fix if found.files else None)
    files = [str(found.root / name) for name in found.files]
    labels, names = check_labels(found.labels, found.classes or ())
    skipped: list[str] = []
    notes = found.notes
    if verify or on_error == "skip":
        bad = _failures(files)
        if bad and on_error == "raise":
            raise _undecodable([(files[i], why) for i, why in bad], len(files))
        if bad:
            skipped = [files[i] for i, _ in bad]
            said = f"{len(bad)} of {len(files)} images cannot be decoded and are left out"
            notes += (f"source.path {path}: {said}: {_listed(skipped)}",)
        gone = set(skipped)
        keep = np.array([file not in gone for file in files])
        labels, _ = check_labels(labels[keep], names)
        files = [file for file in files if file not in gone]
    source = FolderSource(
        labels=labels,
        shape=(image_size, image_size, channels),
        class_names=names,
        notes=notes,
        files=tuple(files),
        skipped=tuple(skipped),
        background=background,
    )
    return source.relabelled(class_names, "source.class_names") if class_names else source


def _failures(files: Sequence[str]) -> list[tuple[int, str]]:
    """(index, reason) of the files that cannot be decoded, in order."""

    def reason(file: str) -> str | None:
        try:
            opened(file)
        except UndecodableError as error:
            return str(error)
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


RESIZER = "halved by boxes, bicubic, centre crop (ADM)"
"""How images come to be squares of another size, for receipts: `centre_crop`."""


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's resize (Dhariwal & Nichol 2021, `center_crop_arr`) of an image to size x size pixels.

    Halve by box filter while the short side is at least twice `size`, then bicubic (with
    antialiasing) so that the short side is `size`, then cut out the centre. Colours are weighted by
    alpha where there is one (Pillow's `resize` does so).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    wide, high = round(image.width * scale), round(image.height * scale)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode(file: str | Path, size: int, channels: int, background: Any = BACKGROUND) -> np.ndarray:
    """One image file as uint8 [size, size, channels], by `fitted`. Raises UndecodableError."""
    return fitted(opened(file), size, channels, background)


def fitted(
    picture: Image.Image, size: int, channels: int, background: Any = BACKGROUND
) -> np.ndarray:
    """An `opened` picture as uint8 [size, size, channels], by `centre_crop`."""
    image = centre_crop(with_channels(picture, channels, background), size)
    if channels in (2, 4):
        # Resizing leaves black under alpha 0.
        image = with_channels(image, channels, background)
    return np.asarray(image).reshape(size, size, channels)


def squares(images: np.ndarray, size: int, background: Any = BACKGROUND) -> np.ndarray:
    """Images uint8 [N, H, W, C] as [N, size, size, C], by `centre_crop`, as files are.

    Raises UsageError for no size and for other arrays.
    """
    if size < 1:
        raise invalid("--image_size", size, "pixels >= 1")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in MODES:
        given = f"{images.dtype} {images.shape}"
        raise invalid("--image_size", given, "images uint8 [N, H, W, 1 to 4] to resize")
    channels = images.shape[-1]
    return stacked(
        lambda image: fitted(of_pixels(image), size, channels, background),
        images,
        (size, size, channels),
    )
