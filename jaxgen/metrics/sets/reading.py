"""Sets of images or features that anyone made: a folder, an array file, or statistics."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxgen.data.arrays import clipped, named
from jaxgen.data.classes import listed, matched
from jaxgen.data.folder import RESIZER, fitted, squares
from jaxgen.data.pixels import (
    BACKGROUND,
    MODES,
    RANGES,
    UndecodableError,
    channels_last,
    colour,
    extensions,
    of_pixels,
    opened,
    scaled,
    with_channels,
)
from jaxgen.data.walk import listing
from jaxgen.errors import invalid
from jaxgen.files import local
from jaxgen.metrics.scores.frechet import Moments
from jaxgen.metrics.sets.quantise import quantise

# What others call the same thing in an .npz: ADM's sample files, our own, torchvision's habits.
_IMAGES = ("images", "image", "samples", "arr_0")
_LABELS = ("labels", "label", "arr_1", "y")
_FEATURES = ("features", "pool_3", "embeddings")
_MORE = ("mu", "sigma", "size", "clip", "class_names")
KINDS = "a folder of images, a .npy or a .npz file"


@dataclasses.dataclass(frozen=True, eq=False)
class Set:
    """Images, features or moments, with what tells the set apart from others.

    images: uint8 [N, H, W, C] (an array, or `jaxgen.data.Streamed`), of which values that are not
    finite were left out and counted in `lost`. features: float [N, d]. moments: of features that
    are not at hand; counted: whether the file says of how many. One of the three is there. labels:
    integers [N], or None; classes: what they are labels of, label 0 first, where the set says so;
    some: whether there may be more classes. sha256: of the array that is scored, and of its shape.
    resize: how images came to their size, where some had another.
    left_out: how many files of a folder of each kind; notes: the same, to be said.
    """

    name: str
    sha256: str
    images: Any = None
    features: np.ndarray | None = None
    moments: Moments | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    lost: int = 0
    counted: bool = True
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    some: bool = False
    resize: str | None = None

    @property
    def size(self) -> int | None:
        """The number of images; None of moments whose file does not say."""
        for array in (self.images, self.features):
            if array is not None:
                return len(array)
        return self.moments.size if self.counted and self.moments is not None else None

    def describe(self) -> dict[str, object]:
        """For a receipt."""
        kind = next(k for k in ("images", "features", "moments") if getattr(self, k) is not None)
        description: dict[str, object] = {
            "name": self.name,
            "sha256": self.sha256,
            "count": self.size,
        }
        if self.images is not None:
            description |= {"shape": list(self.images.shape[1:]), "quantiser": "round half up"}
        if self.resize is not None:
            description["resize"] = self.resize
        if self.lost:
            description["not_finite"] = self.lost
        if self.labels is not None:
            counts = np.unique(self.labels, return_counts=True)[1]
            description["labels"] = "balanced" if np.ptp(counts) <= 1 else "not balanced"
            if self.classes is not None:
                description["classes"] = list(self.classes)
        if self.left_out:
            description["files_left_out"] = dict(self.left_out)
        return {**description, "kind": kind}


def load(
    path: str | Path,
    *,
    option: str,
    range: str | None = None,
    channels: int | None = None,
    background: Any = BACKGROUND,
    image_size: int | None = None,
) -> Set:
    """Read a set. option: what messages call it. range: of float images, one of `pixels.RANGES`.

    A folder holds image files at any depth, all of one size; if some of them lie in sub-folders,
    those of the first level are the classes (`data.walk`). Arrays are images [N, H, W, C] (or
    [N, H, W]) of bytes or floats, or features [N, d]; a .npz may hold labels and class_names beside
    them, or `mu` and `sigma` (and `size`) in their place. Nothing is unpickled. channels: of
    images, 1 to 4 (`pixels.with_channels`, as training sees them); None: as they are, hidden
    colours too, and of a folder whose images differ, colours where some have colours and alpha
    where all have alpha. background: what is seen through
    transparent images that lose their alpha. image_size: pixels a side to which images of other
    sizes are resized and cropped, as training does (`data.folder.centre_crop`); None: all are of
    one size. Raises UsageError for what cannot be read and for what cannot be scored.
    """
    path = local(option, path)
    if range is not None and range not in RANGES:
        raise invalid("--range", range, ", ".join(RANGES))
    if channels is not None and channels not in MODES:
        raise invalid("--channels", channels, "1 grey, 2 grey and alpha, 3 RGB, 4 RGBA")
    colour(background, "--background")
    if image_size is not None and image_size < 1:
        raise invalid("--image_size", image_size, "pixels >= 1")
    if path.is_dir():
        return _folder(path, option, channels, background, image_size)
    if path.suffix not in (".npy", ".npz"):
        raise invalid(option, str(path), KINDS)
    if not path.is_file():
        raise invalid(option, str(path), f"{KINDS} that exists")
    try:
        if path.suffix == ".npy":
            arrays: Mapping[str, np.ndarray] = {"arr_0": np.load(path, allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as file:
                wanted = (*_IMAGES, *_LABELS, *_FEATURES, *_MORE)
                arrays = {k: file[k] for k in file.files if k in wanted}
                held = list(file.files)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise invalid(option, str(path), f"a whole array file without pickles ({error})") from error
    name = path.name
    if "mu" in arrays and "sigma" in arrays:
        return _statistics(arrays, name, option)
    key = next((k for k in (*_FEATURES, *_IMAGES) if k in arrays), None)
    if key is None:
        allowed = f"one of the arrays {', '.join((*_IMAGES, *_FEATURES))}, or mu and sigma"
        raise invalid(option, f"{name} with {', '.join(held) or 'nothing'}", allowed)
    labels = next((arrays[k] for k in _LABELS if k in arrays), None)
    classes = named(arrays["class_names"], option=option) if "class_names" in arrays else None
    array = arrays[key]
    if "clip" in arrays and array.dtype.kind == "f":
        array, range = clipped(array, arrays["clip"], option=f"{option} {name}"), "-1,1"
    found = of_array(array, labels, name=name, option=option, range=range)
    if classes is not None and found.labels is not None:
        if found.labels.min() < 0 or found.labels.max() > len(classes):
            given = f"{name} with labels {found.labels.min()} to {found.labels.max()}"
            raise invalid(option, given, f"0 to {len(classes) - 1}, as it has class names")
        # One past the last is no label: such samples are of no class.
        unlabelled = (found.labels == len(classes)).any()
        found = dataclasses.replace(
            found,
            labels=None if unlabelled else found.labels,
            classes=None if unlabelled else classes,
        )
    if found.images is not None and channels is not None:
        images = np.stack([of_channels(image, channels, background) for image in found.images])
        found = dataclasses.replace(found, images=images, sha256=_digest(images))
    if found.images is None or image_size in (None, *_square(found.images.shape)):
        return found
    assert image_size is not None
    images = squares(found.images, image_size, background)
    how = _resized(image_size)
    return dataclasses.replace(found, images=images, sha256=_digest(images), resize=how)


def _square(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The side of images [N, H, W, C] that are squares, else nothing."""
    return (shape[1],) if shape[1] == shape[2] else ()


def _resized(size: int) -> str:
    """For a receipt."""
    return f"{RESIZER} to {size} pixels"


def aligned(data: Set, reference: Set, option: str, say: Callable[[str], None]) -> Set:
    """A set whose labels mean what the reference's mean: classes are matched by name.

    Where only one of the two has names, numbers are names if the other's names are numbers, and
    otherwise places in its list, which is said. Raises UsageError for other classes, with both
    lists.
    """
    labels, theirs = data.labels, reference.labels
    ours, wanted = data.classes, reference.classes
    if labels is None or theirs is None or (ours is None and wanted is None):
        return data
    if ours is not None and wanted is not None:
        whose = f"the classes of {reference.name}"
        named_here = f"{option} {data.name}"
        place = matched(ours, wanted, option=named_here, whose=whose, fewer=data.some)
        return dataclasses.replace(data, labels=place.astype(np.int64)[labels], classes=wanted)
    names = listed(ours or wanted or ())
    count, bare = (len(ours), theirs) if ours is not None else (len(wanted or ()), labels)
    values = [int(name) if name.isdecimal() else None for name in (ours or wanted or ())]
    if None in values or not (data.some or set(bare.tolist()) <= set(values)):
        values = list(range(count))
        which = reference.name if ours is not None else data.name
        if not set(bare.tolist()) <= set(values):
            given = f"{which} with labels {bare.min()} to {bare.max()} and no class names"
            raise invalid(option, given, f"labels of the {count} classes {names}")
        say(f"labels of {which} have no names: taken as places among {names}")
    if ours is not None:
        return dataclasses.replace(data, labels=np.array(values)[labels], classes=None)
    place_of = {value: label for label, value in enumerate(values)}
    return dataclasses.replace(
        data, labels=np.array([place_of[y] for y in labels.tolist()]), classes=wanted
    )


def of_channels(image: np.ndarray, channels: int, background: Any) -> np.ndarray:
    """An image uint8 [H, W, C] with other channels (`pixels.with_channels`)."""
    found = np.asarray(with_channels(of_pixels(image), channels, background))
    return found.reshape(*image.shape[:2], channels)


def of_array(
    array: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    name: str,
    option: str,
    range: str | None = None,
) -> Set:
    """A set of an array of images or features; see `load`."""
    if array.dtype == object or array.dtype.kind not in "uif":
        raise invalid(option, f"{name} of {array.dtype}", "bytes or floats")
    if array.ndim not in (2, 3, 4) or not array.size:
        allowed = "images [N, H, W, C] or features [N, d] with N >= 1"
        raise invalid(option, f"{name} of shape {array.shape}", allowed)
    if labels is not None:
        if labels.shape != array.shape[:1] or labels.dtype.kind not in "ui":
            given = f"labels {labels.dtype} {labels.shape}"
            raise invalid(option, given, f"integers, one an image: ({len(array)},)")
        labels = labels.astype(np.int64)
    if array.ndim == 2:
        return _features(array, labels, name, option)
    images = channels_last(array, f"{option} {name}")
    if images.shape[-1] not in MODES:
        given = f"{name} of shape {array.shape}"
        raise invalid(option, given, "images [N, H, W, C] with 1 to 4 channels")
    good = np.isfinite(images.reshape(len(images), -1)).all(1)
    if not good.any():
        raise invalid(option, f"{name} without a finite image", "finite values")
    lost = int((~good).sum())
    if lost:
        images = images[good]
        labels = None if labels is None else labels[good]
    images = scaled(images, range, option=option, setting="--range", name=name)
    return of_bytes(
        quantise(images if images.dtype == np.uint8 else images.astype(np.float64)),
        labels,
        name,
        lost,
    )


def of_bytes(images: Any, labels: np.ndarray | None, name: str, lost: int = 0) -> Set:
    """A set of images uint8 [N, H, W, C]. lost: those left out for not being finite."""
    return Set(name, _digest(images), images=images, labels=labels, lost=lost)


def _features(array: np.ndarray, labels: np.ndarray | None, name: str, option: str) -> Set:
    bad = int((~np.isfinite(array)).any(1).sum())
    if bad:
        given = f"{name}: {bad} of {len(array)} rows hold values that are not finite"
        raise invalid(option, given, "finite features")
    if len(array) > 1 and (array == array[0]).all():
        raise invalid(option, f"{name}: {len(array)} equal rows", "features that differ")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    return Set(name, _digest(array), features=array, labels=labels)


def _statistics(arrays: Mapping[str, np.ndarray], name: str, option: str) -> Set:
    mean, covariance = (np.asarray(arrays[k], np.float64) for k in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        given = f"{name} with mu {mean.shape}, sigma {covariance.shape}"
        raise invalid(option, given, "mu [d] and sigma [d, d]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise invalid(option, f"{name} with values that are not finite", "finite mu and sigma")
    # Files of this kind seldom say of how many images they are: enough, it is assumed.
    size = int(arrays["size"]) if "size" in arrays else None
    nominal = len(mean) + 1 if size is None else size
    digest = _digest(np.concatenate([mean[None], covariance]))
    moments = Moments(nominal, mean, covariance * (nominal - 1))
    return Set(name, digest, moments=moments, counted=size is not None)


def _folder(
    path: Path, option: str, channels: int | None, background: Any, size: int | None
) -> Set:
    found = listing(path, option=option)
    if not found.files:
        allowed = f"a folder with images ({', '.join(sorted(extensions()))})"
        raise invalid(option, str(path), allowed)

    others: list[str] = []

    def read(file: str) -> Image.Image:
        try:
            picture = opened(found.root / file)
        except UndecodableError as error:
            raise invalid(
                option, str(found.root / file), "images that can be decoded", str(error)
            ) from error
        if size is None or picture.size == (size, size):
            return picture
        others.append(file)
        return of_pixels(fitted(picture, size, channels or len(picture.getbands()), background))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(read, found.files))
    first = pictures[0].size
    for file, image in zip(found.files, pictures, strict=True):
        if image.size != first:
            given = f"{found.files[0]} {first} and {file} {image.size}"
            fix = "Or --image_size N, to resize them as training does."
            raise invalid(option, given, "images of one size (width, height)", fix)
    asked = channels
    if channels is None:
        modes = [image.mode for image in pictures]
        alpha = all(mode in ("LA", "RGBA") for mode in modes)
        channels = (1 if all(mode in ("L", "LA") for mode in modes) else 3) + alpha
    images = np.empty((len(pictures), first[1], first[0], channels), np.uint8)
    for row, image in zip(images, pictures, strict=True):
        if asked is not None or image.mode != MODES[channels]:
            image = with_channels(image, channels, background)
        row[...] = np.asarray(image).reshape(row.shape)
    return Set(
        path.name,
        _digest(images),
        images=images,
        labels=found.labels,
        classes=found.classes,
        some=found.some,
        notes=found.notes,
        left_out=found.left_out,
        resize=_resized(size) if others and size is not None else None,
    )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for start in range(0, len(array), 1024):
        digest.update(np.ascontiguousarray(array[start : start + 1024]).data)
    return digest.hexdigest()
