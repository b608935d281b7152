"""Images that lie encoded in records: what such sources share, whatever the records are."""

from __future__ import annotations

import abc
import dataclasses
import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxgen.data.arrays import fill_split
from jaxgen.data.classes import natural
from jaxgen.data.folder import fitted, stacked
from jaxgen.data.pixels import (
    BACKGROUND,
    MODES,
    UndecodableError,
    colour,
    decoded,
    of_pixels,
    with_channels,
)
from jaxgen.data.source import Source, check_labels
from jaxgen.data.walk import ALL
from jaxgen.errors import invalid, unknown
from jaxgen.files import local


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncodedSource(Source):
    """Images decoded when asked for, as `folder` decodes files (`data.pixels`).

    fit: whether they are resized and cropped to the shape; else they must have it.
    """

    fit: bool
    background: Any = BACKGROUND

    @property
    def dtype(self) -> np.dtype:
        """Bytes, which needs nothing decoded."""
        return np.dtype(np.uint8)

    @abc.abstractmethod
    def stored(self, indices: Sequence[int]) -> Sequence[bytes | np.ndarray]:
        """What is stored of each: an image file's bytes, or pixels uint8 [H, W] or [H, W, C]."""

    @abc.abstractmethod
    def entry(self, index: int) -> str:
        """What a message calls an entry."""

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n, H, W, C] at `indices` [n]; UsageError names an entry that fails."""
        places = [int(i) for i in indices]
        pairs = list(zip(places, self.stored(places), strict=True))
        return stacked(lambda pair: self._one(*pair), pairs, self.shape)

    def _one(self, index: int, data: bytes | np.ndarray) -> np.ndarray:
        picture = opened(data, self.entry(index))
        height, width, channels = self.shape
        if self.fit:
            return fitted(picture, height, channels, self.background)
        if picture.size != (width, height):
            given = f"{self.entry(index)} of {picture.width}x{picture.height} pixels"
            fix = "Say what size all should have: source.image_size=N."
            raise invalid("source.path", given, f"{width}x{height}, as the first", fix)
        image = with_channels(picture, channels, self.background)
        return np.asarray(image).reshape(self.shape)


def opened(data: bytes | np.ndarray, entry: str) -> Image.Image:
    """The picture in an image file's bytes, or of pixels. UsageError names the entry."""
    try:
        return _pixels(data) if isinstance(data, np.ndarray) else decoded(data)
    except UndecodableError as error:
        raise invalid("source.path", f"{entry} ({error})", "images that can be decoded") from error


def _pixels(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UndecodableError(f"{array.dtype} {array.shape}, and not uint8 [H, W] or [H, W, C]")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[-1] not in MODES or 0 in array.shape:
        raise UndecodableError(f"uint8 {array.shape}, and not [H, W, 1 to 4]")
    return of_pixels(array)


def check_size(image_size: int | None, channels: int, background: Any) -> None:
    """Raises UsageError for settings that no image can have."""
    if image_size is not None and image_size < 1:
        raise invalid("source.image_size", image_size, "an integer >= 1, or None")
    if channels not in MODES:
        raise invalid("source.channels", channels, "1, 2, 3 or 4")
    colour(background)


def shape_of(
    first: bytes | np.ndarray, entry: str, image_size: int | None, channels: int
) -> tuple[int, int, int]:
    """(H, W, C) of a source: squares of `image_size`, or as the first entry is."""
    if image_size is not None:
        return image_size, image_size, channels
    picture = opened(first, entry)
    return picture.height, picture.width, channels


def labels_of(
    values: Sequence[int] | Sequence[str] | None, count: int, class_names: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int32 [N] and class names of numbers, of names, or of nothing (None: one class).

    Names are in `natural` order, or in that of `class_names`. Raises UsageError as `check_labels`
    does, and for names that are not among `class_names`.
    """
    if values is None:
        return check_labels(np.zeros(count, np.int64), tuple(class_names) or (ALL,))
    if count and isinstance(values[0], str):
        said = [str(value) for value in values]
        names = tuple(class_names) or natural(list(set(said)))
        place = {name: label for label, name in enumerate(names)}
        odd = next((name for name in said if name not in place), None)
        if odd is not None:
            raise unknown("source.class_names", odd, names)
        return check_labels(np.array([place[name] for name in said]), names)
    return check_labels(np.asarray(values), class_names)


def shards(path: str, split: str) -> list[str]:
    """The files of `path`, sorted: one, a glob's, or by braces, as in `shard-{000..127}.tar`.

    `{split}` stands for the split. Raises UsageError for none, and for one that is not there.
    """
    fill_split(split, path)
    pattern = str(local("source.path", path.replace("{split}", split)))
    found: list[str] = []
    for each in braced(pattern):
        files = [each] if os.path.isfile(each) else sorted(glob.glob(each))
        if not files:
            raise invalid("source.path", each, "a file that exists, or a pattern of some")
        found += files
    return found


def braced(pattern: str) -> list[str]:
    """Brace expansion as a shell has it: `a{1,2}` and `a{08..11}`, several times over."""
    before, opening, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not opening or not closing:
        return [pattern]
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        width = len(first) if first.startswith("0") else 0
        words = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    elif "," in inside:
        words = inside.split(",")
    else:
        return [f"{before}{{{inside}}}{tail}" for tail in braced(after)]
    if not words:
        raise invalid("source.path", pattern, "a range that rises, as in {000..127}")
    return [f"{before}{word}{tail}" for word in words for tail in braced(after)]
