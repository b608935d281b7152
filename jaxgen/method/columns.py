"""Columns: what a source gives of each example beside its image and its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from jaxgen.errors import invalid

RESERVED = ("image", "label", "index", "seen", "microbatch")
"""What a batch holds of its own (`jaxgen.method.placed`)."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One example's entry: its shape, () for a number, and its dtype as NumPy spells it.

    A column whose shape begins with the image's height and width (a mask, the other half of a pair)
    lies on the image: where `data.flip` mirrors an image, it is mirrored too.
    """

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        """From JSON too, where tuples are lists."""
        object.__setattr__(self, "shape", tuple(self.shape))

    def lies_on(self, shape: tuple[int, ...]) -> bool:
        """Whether it is mirrored with images of `shape` (H, W, C)."""
        return len(shape) == 3 and self.shape[:2] == shape[:2]


class HasColumns(Protocol):
    """A Spec, or a source."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """By name."""
        ...


def require_column(spec: HasColumns, name: str, option: str) -> Column:
    """The column that `option` asks for: `batch[name]` is [B, *shape] then.

    Raises UsageError, naming the option and what columns there are, where the data have none.
    """
    if name not in spec.columns:
        have = ", ".join(spec.columns) or "none"
        raise invalid(
            option,
            f"column {name!r}",
            f"a column of the data, which have {have}",
            'Sources give columns where they are asked to: config.data.source.columns=("group",) '
            "of arrays, union.union (group), features.features (what `jaxgen encode` wrote).",
        )
    return spec.columns[name]
