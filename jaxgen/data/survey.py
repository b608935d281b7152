"""What a folder of images is like, from names and headers: what a config is chosen by."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgen.data.pixels import formats
from jaxgen.data.walk import ALL, DATASET, Listing, listing, unlabelled, walk
from jaxgen.errors import invalid
from jaxgen.files import local

TRAIN = ("train", "training", "trainval")
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout")
"""What the halves of a folder are called, those first that are looked for first."""
_LOOK = 1000
_SWAPPED = frozenset(range(5, 9))
_ORIENTATION = 0x0112
_GREY = frozenset(["1", "L", "LA", "I", "I;16", "I;16B", "I;16L"])


@dataclasses.dataclass(frozen=True)
class Survey:
    """A folder's training half. train, test: the names of its halves; test None: there is none.

    classes: their names, and counts the images of each. one_class: whether the folder says none, so
    that all are of one. splits: as `folder.folder` takes it. width, height: medians in pixels,
    upright. grey: whether no image has colours. unread: of those that were looked at, how many have
    no header that can be read.
    """

    train: str
    test: str | None
    splits: bool | None
    one_class: bool
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    width: int
    height: int
    grey: bool
    unread: int

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def side(self) -> int:
        """The shorter of the median sides."""
        return min(self.width, self.height)


def survey(path: str, *, option: str = "path", look: int = _LOOK) -> Survey:
    """Look at a folder: its classes, its halves, and `look` of its images' headers.

    Folders of classes, of splits that hold classes, and with nothing but images are told apart as
    `walk.listing` does; sub-folders that are all called as splits are, and hold images themselves,
    are splits of one class. Nothing is decoded. Raises UsageError, naming `option`, for no folder,
    no images, and images of which none can be read.
    """
    root = local(option, path)
    if not root.is_dir():
        raise invalid(option, path, "an existing folder of images")
    train, test, splits, found = _halves(root, option)
    one_class = found.labels is None
    if one_class:
        found = unlabelled(root, option=option, split=train, splits=splits)
    if not found.files:
        raise invalid(option, str(found.root), "a folder with images")
    places = np.unique(np.linspace(0, len(found.files) - 1, look).astype(int))
    seen = [_header(found.root / found.files[i]) for i in places]
    read = [each for each in seen if each is not None]
    if not read:
        raise invalid(option, f"{path}, where no image can be read", "images that Pillow reads")
    widths, heights, modes = zip(*read, strict=True)
    classes = found.classes
    if found.labels is None or classes is None:
        count = 1 if found.labels is None else int(found.labels.max()) + 1
        classes = (ALL,) if found.labels is None else tuple(str(i) for i in range(count))
    labels = np.zeros(len(found.files), int) if found.labels is None else found.labels
    return Survey(
        train=train,
        test=test,
        splits=splits,
        one_class=one_class,
        classes=classes,
        counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        width=round(statistics.median(widths)),
        height=round(statistics.median(heights)),
        grey=all(mode in _GREY for mode in modes),
        unread=len(seen) - len(read),
    )


def _halves(root: Path, option: str) -> tuple[str, str | None, bool | None, Listing]:
    """(training half, test half or None, `splits` as a source takes it, the training images)."""
    tree = walk(root, option)
    inside = {file.split("/", 1)[0] for file in tree.files if "/" in file}
    train, test = TRAIN[0], _first(TEST, tree.folders)
    if inside <= {*TRAIN, *TEST}:
        train = _first(TRAIN, tree.folders) or train
        deep = any(file.count("/") > 1 for file in tree.files)
        styled = any((folder / DATASET).is_file() for folder in (root, root / train))
        if train in inside and test is not None and not deep and not styled:
            split = unlabelled(root, option=option, split=train, splits=True)
            return train, test, True, dataclasses.replace(split, labels=None, classes=None)
    found = listing(root, option=option, split=train)
    apart = found.root != root
    return train, test if apart else None, None, found


def _first(names: Sequence[str], there: Sequence[str]) -> str | None:
    return next((name for name in names if name in there), None)


def _header(file: Path) -> tuple[int, int, str] | None:
    """(width, height, mode) of an image file, upright; None where it says nothing."""
    try:
        with Image.open(file, formats=formats()) as image:
            wide, high = image.size
            if image.getexif().get(_ORIENTATION, 1) in _SWAPPED:
                wide, high = high, wide
            return wide, high, image.mode
    # Damaged files make Pillow's plugins raise whatever they stumble over.
    except Exception:
        return None
