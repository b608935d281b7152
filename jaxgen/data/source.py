"""What a source of data is, the checks every source makes, and the source that lies in memory."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from jaxgen.data import order
from jaxgen.data.classes import matched
from jaxgen.data.columns import checked, described, rows
from jaxgen.data.pixels import channels_last, scaled
from jaxgen.errors import invalid, unknown
from jaxgen.method.columns import Column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coding:
    """How images became a source's examples, for whoever has samples but not the source.

    tokenizer: the workdir that encoded them, ema the name of its parameters and digest theirs; None
    where the source does not know. Latents are (mean - shift) * scale; tokens are as they were.
    """

    tokenizer: str | None = None
    ema: str | None = None
    digest: str | None = None
    scale: float = 1.0
    shift: float = 0.0

    def raw(self, samples: np.ndarray) -> np.ndarray:
        """Samples of a model of these examples as the tokenizer's decoder wants them."""
        discrete = np.issubdtype(samples.dtype, np.integer)
        return samples if discrete else samples / self.scale + self.shift

    def examples(self, codes: np.ndarray) -> np.ndarray:
        """What the tokenizer's encoder gives (tokens, or mean and deviation) as examples."""
        if np.issubdtype(codes.dtype, np.integer):
            return codes
        mean, _ = np.split(codes, 2, axis=-1)
        return ((mean - self.shift) * self.scale).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Source(abc.ABC):
    """Random access to N labelled images; picklable, so that worker processes can hold it.

    labels: int32 [N] in [0, num_classes), every class present. shape: one image's (H, W, C).
    class_names: one name a class. Build labels with `check_labels`. levels: how many evenly spaced
    values an element can take (bytes: 256), None where any real number may come. tokens: the
    examples are int32 in [0, levels), of shape (h, w), and not images. columns: what else there is
    of each example, by name (see `column`). notes: what to tell whoever opened it, such as how many
    files were left out.
    """

    labels: np.ndarray
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    levels: int | None = 256
    tokens: bool = False
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    @property
    def dtype(self) -> np.dtype:
        """What `images` are made of."""
        return self.images(np.arange(1)).dtype

    @property
    def flippable(self) -> bool:
        """Whether `draw` can mirror an image."""
        return True

    @property
    def coding(self) -> Coding | None:
        """How images became these examples; None where the examples are no codes."""
        return None

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.labels)

    def relabelled(
        self, names: Sequence[str], option: str, *, whose: str = "the same", fewer: bool = False
    ) -> Self:
        """The same examples with labels that count in the order of `names`, matched by name.

        option, whose, fewer: see `classes.matched`. Raises UsageError for other classes.
        """
        if tuple(names) == self.class_names:
            return self
        place = matched(self.class_names, names, option=option, whose=whose, fewer=fewer)
        return dataclasses.replace(self, labels=place[self.labels], class_names=tuple(names))

    def visited(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Which examples int64 [n] training sees at `positions` [n] of its endless stream."""
        return order.examples(seed, positions, len(self))

    def column(self, name: str, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Rows [n, *shape] of a column at `indices` [n], fresh; mirrored [n]: as its image is."""
        raise unknown("column", name, self.columns)

    @abc.abstractmethod
    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images [n, H, W, C] at `indices` [n], a fresh array: uint8, or float32 already scaled."""

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """Images [n, H, W, C] as training sees them: mirrored left to right where the coin says so.

        positions [n]: each image's place in the endless stream. All that is random comes from
        (seed, position). flip: mirror half of the images.
        """
        images = self.images(indices)
        if not flip:
            return images
        coins = order.flips(seed, positions)
        images[coins] = images[coins][:, :, ::-1]
        return images


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Target(Source):
    """A source without examples: what is learned is given as code, such as a reward.

    Batches then hold labels alone (all 0: one class), and methods that learn from targets find this
    object in `Spec.target`. Subclasses add the pure functions that their families need, and
    `picture`.
    """

    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    class_names: tuple[str, ...] = ("all",)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """There are none."""
        raise TypeError(f"{type(self).__name__} has no examples")

    def picture(self, samples: np.ndarray, columns: int) -> np.ndarray:
        """Samples [N, *shape] as a picture [H, W, 3] uint8, `columns` wide where it is a grid."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ArraySource(Source):
    """A source whose images [N, H, W, C] lie in memory."""

    array: np.ndarray
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """The array's."""
        return self.array.dtype

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images [n, H, W, C] at `indices` [n]."""
        return self.array[indices]

    def column(self, name: str, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Rows of an array [N, ...] of `beside`."""
        return rows(self.beside[name], indices, mirrored, self.shape)


def in_memory(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    channels: int | None = None,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
    levels: int | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    range: str | None = None,
    option: str = "source",
) -> ArraySource:
    """A source from arrays: images [N, H, W(, C)] of bytes or other numbers, labels [N] integers.

    channels: None keeps them, else see `to_channels`. levels: how many values floats take (None:
    any); bytes take 256. columns: further arrays [N, ...] (`data.columns.checked`). range: what the
    numbers run from and to (`pixels.scaled`); bytes, and floats of which some are negative, need
    not say. Raises UsageError, naming `option`, for any other shape (channels first, too), numbers
    out of range or not finite, and what `check_labels` refuses.
    """
    images = channels_last(images, f"{option}.images")
    images = scaled(images, range, option=f"{option}.images", setting=f"{option}.range")
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    if labels.shape != images.shape[:1]:
        raise invalid(f"{option}.labels", labels.shape, f"one label an image: ({len(images)},)")
    images = to_channels(images, channels, option=option)
    labels, names = check_labels(labels, class_names, num_classes, option=option)
    if images.dtype == np.uint8:
        levels = 256
    beside = checked(columns or {}, len(images), option=f"{option}.columns")
    return ArraySource(
        labels=labels,
        shape=images.shape[1:],
        class_names=names,
        levels=levels,
        columns=described(beside),
        array=images,
        beside=beside,
    )


def check_labels(
    labels: np.ndarray,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
    *,
    option: str = "source",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int32 [N] and one name a class, after the checks that every source makes.

    The number of classes is that of the names, else `num_classes`, else the largest label + 1.
    Raises UsageError for labels that are not integers, labels out of range (which names the range)
    and classes without an image.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise invalid(f"{option}.labels", f"{labels.dtype} {labels.shape}", "integers of shape [N]")
    if class_names and num_classes not in (None, len(class_names)):
        raise invalid(f"{option}.num_classes", num_classes, f"{len(class_names)}, one a class name")
    count = len(class_names) or num_classes or max(int(labels.max()), 0) + 1
    outside = (labels < 0) | (labels >= count)
    if outside.any():
        first = int(np.argmax(outside))
        raise invalid(
            f"{option}.labels",
            int(labels[first]),
            f"integers in [0, {count})",
            f"{int(outside.sum())} labels are out of range, the first at example {first}.",
        )
    names = tuple(class_names) or tuple(str(i) for i in range(count))
    empty = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    if len(empty):
        listed = ", ".join(repr(names[i]) for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise invalid(
            f"{option}.labels",
            f"no image of {len(empty)} of {count} classes ({listed})",
            "at least one image in every class",
        )
    return labels.astype(np.int32), names


def to_channels(images: np.ndarray, channels: int | None, *, option: str = "source") -> np.ndarray:
    """Images [..., C] with the number of channels asked for.

    1 to n repeats the grey channel; 3 to 1 is ITU-R 601 luma (for uint8 in integers, as Pillow's
    "L"). Raises UsageError for any other change.
    """
    have = images.shape[-1]
    if channels is None or channels == have:
        return images
    if have == 1 and channels > 1:
        return np.repeat(images, channels, axis=-1)
    if have == 3 and channels == 1:
        if images.dtype == np.uint8:
            weights = np.array([19595, 38470, 7471], np.uint32)
            return ((images @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]
        return (images @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    raise invalid(f"{option}.channels", channels, f"{have}, or 1 from 3, or any number from 1")


def check_split(split: str, allowed: Sequence[str], *, option: str = "source.split") -> None:
    """Raises UsageError unless `split` is one of `allowed`."""
    if split not in allowed:
        raise invalid(option, split, ", ".join(allowed))
