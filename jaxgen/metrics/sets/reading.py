"""Sets of images or features that anyone made: a folder, an array file, or statistics."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgen.data.folder import EXTENSIONS
from jaxgen.errors import invalid
from jaxgen.metrics.scores.frechet import Moments
from jaxgen.metrics.sets.quantise import quantise

# What others call the same thing in an .npz: ADM's sample files, our own, torchvision's habits.
_IMAGES = ("images", "image", "samples", "arr_0")
_LABELS = ("labels", "label", "arr_1", "y")
_FEATURES = ("features", "pool_3", "embeddings")
_OURS = re.compile(r"_label(\d+)$")
KINDS = "a folder of images, a .npy or a .npz file"
RANGES = {"-1,1": (-1.0, 1.0), "0,1": (0.0, 1.0), "0,255": (0.0, 255.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Set:
    """Images, features or moments, with what tells the set apart from others.

    images: uint8 [N, H, W, C], of which values that are not finite were left out and counted in
    `lost`. features: float [N, d]. moments: of features that are not at hand; counted: whether the
    file says of how many. One of the three is there. labels: integers [N], or None. sha256: of the
    array that is scored, and of its shape.
    """

    name: str
    sha256: str
    images: np.ndarray | None = None
    features: np.ndarray | None = None
    moments: Moments | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    lost: int = 0
    counted: bool = True

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
        if self.lost:
            description["not_finite"] = self.lost
        if self.labels is not None:
            counts = np.unique(self.labels, return_counts=True)[1]
            description["labels"] = "balanced" if np.ptp(counts) <= 1 else "not balanced"
        return {**description, "kind": kind}


def load(path: str | Path, *, option: str, range: str | None = None) -> Set:
    """Read a set. option: what messages call it. range: of float images, one of `RANGES`.

    A folder holds image files at any depth, all of one size and mode; if every one of them lies in
    a sub-folder, the first-level sub-folders are the classes. Arrays are images [N, H, W, C] (or
    [N, H, W]) of bytes or floats, or features [N, d]; a .npz may hold labels beside them, or `mu`
    and `sigma` (and `size`) in their place. Nothing is unpickled. Raises UsageError for what
    cannot be read and for what cannot be scored.
    """
    path = Path(path)
    if range is not None and range not in RANGES:
        raise invalid("--range", range, ", ".join(RANGES))
    if path.is_dir():
        return _folder(path, option)
    if path.suffix not in (".npy", ".npz"):
        raise invalid(option, str(path), KINDS)
    if not path.is_file():
        raise invalid(option, str(path), f"{KINDS} that exists")
    try:
        if path.suffix == ".npy":
            arrays: Mapping[str, np.ndarray] = {"arr_0": np.load(path, allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as file:
                wanted = (*_IMAGES, *_LABELS, *_FEATURES, "mu", "sigma", "size", "clip")
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
    array = arrays[key]
    if "clip" in arrays and array.dtype.kind == "f":
        # Our own samples: the ends of the range, beyond which whoever made them meant the ends.
        if arrays["clip"].tolist() != [-1.0, 1.0]:
            raise invalid(option, f"{name} with clip {arrays['clip'].tolist()}", "clip [-1.0, 1.0]")
        array, range = np.clip(array, -1.0, 1.0), "-1,1"
    return of_array(array, labels, name=name, option=option, range=range)


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
    images = array[..., None] if array.ndim == 3 else array
    if images.shape[-1] not in (1, 3, 4):
        hint = "Channels come last: transpose(0, 2, 3, 1)." if images.shape[1] in (1, 3) else None
        given = f"{name} of shape {array.shape}"
        raise invalid(option, given, "images [N, H, W, C] with 1, 3 or 4 channels", hint)
    good = np.isfinite(images.reshape(len(images), -1)).all(1)
    if not good.any():
        raise invalid(option, f"{name} without a finite image", "finite values")
    lost = int((~good).sum())
    if lost:
        images = images[good]
        labels = None if labels is None else labels[good]
    return of_bytes(_bytes(images, name, option, range), labels, name, lost)


def of_bytes(images: np.ndarray, labels: np.ndarray | None, name: str, lost: int = 0) -> Set:
    """A set of images uint8 [N, H, W, C]. lost: those left out for not being finite."""
    return Set(name, _digest(images), images=images, labels=labels, lost=lost)


def _bytes(images: np.ndarray, name: str, option: str, given: str | None) -> np.ndarray:
    """Images as uint8; floats by their range, which is asked for where it could be another."""
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if given is None and images.dtype.kind == "f" and low < 0:
        given = "-1,1"
    if given is None:
        seen = f"{name} of {images.dtype} from {low:g} to {high:g}"
        raise invalid(option, seen, "uint8, or floats with --range -1,1 or 0,1 or 0,255")
    least, most = RANGES[given]
    if low < least or high > most:
        seen = f"{name} with values from {low:g} to {high:g}"
        raise invalid(option, seen, f"values in [{least:g}, {most:g}] (--range {given})")
    return quantise((images.astype(np.float64) - least) / (most - least) * 2 - 1)


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


def _folder(path: Path, option: str) -> Set:
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in EXTENSIONS and f.is_file())
    if not files:
        raise invalid(option, str(path), f"a folder with images ({', '.join(sorted(EXTENSIONS))})")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda file: _decoded(file, option), files))
    first = images[0].shape
    for file, image in zip(files, images, strict=True):
        if image.shape != first:
            given = f"{files[0].name} {first} and {file.relative_to(path)} {image.shape}"
            raise invalid(option, given, "images of one size and one number of channels")
    array = np.stack(images)
    parents = [file.relative_to(path).parts for file in files]
    marks = [_OURS.search(file.stem) for file in files]
    labels, classes = None, None
    if all(len(folders) > 1 for folders in parents):
        classes = tuple(sorted({folders[0] for folders in parents}))
        labels = np.array([classes.index(folders[0]) for folders in parents])
    elif all(marks):
        labels = np.array([int(mark[1]) for mark in marks if mark])
    return Set(path.name, _digest(array), images=array, labels=labels, classes=classes)


def _decoded(file: Path, option: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            array = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise invalid(option, str(file), "images that can be decoded", str(error)) from error
    return array[..., None] if array.ndim == 2 else array


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for start in range(0, len(array), 1024):
        digest.update(np.ascontiguousarray(array[start : start + 1024]).data)
    return digest.hexdigest()
