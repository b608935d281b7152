"""New classes on a trained model: its label tables with more rows, for `config.start`.

A run whose classes are those of the run it starts from and some more takes the rows of the shared
ones by name, wherever they stand. A new class's row begins as that of the class which `parents`
names, or fresh; the row of "no label" stays the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.errors import invalid, unknown

OPTION = "config.start.parents"
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Growth:
    """rows [C]: for each class of this run, the class there that it begins as; -1: it is fresh.

    count: classes there. scale: what a row of theirs is multiplied by (see `scale_of`).
    """

    rows: tuple[int, ...]
    count: int
    scale: float = 1.0

    def axis(self, theirs: Shape, ours: Shape) -> int | None:
        """The axis along which classes lie, perhaps "no label" after them; None: none does.

        Of the same array there and here: the one axis that differs, as long as there are classes.
        """
        if len(theirs) != len(ours):
            return None
        apart = [n for n, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
        null = theirs[apart[0]] - self.count if len(apart) == 1 else -1
        return apart[0] if null in (0, 1) and ours[apart[0]] == len(self.rows) + null else None

    def grown(self, theirs: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Their array with the rows of this run's classes; those that are new are of `fresh`."""
        axis = self.axis(theirs.shape, fresh.shape)
        assert axis is not None
        null = [self.count] if theirs.shape[axis] > self.count else []
        rows = np.array([*self.rows, *null])
        known = np.expand_dims(rows >= 0, [n for n in range(fresh.ndim) if n != axis])
        taken = np.take(theirs, np.maximum(rows, 0), axis) * np.asarray(self.scale, theirs.dtype)
        return np.where(known, taken, fresh).astype(fresh.dtype)


def growth(
    theirs: Sequence[str], ours: Sequence[str], parents: Mapping[str, str] | None, models: Any = ()
) -> Growth | None:
    """How the model of classes `theirs` becomes one of `ours`; None where that is no growth.

    parents: which of theirs a new class begins as. models: this run's networks. Raises UsageError
    for a parent or a child that there is not, and for a network that cannot grow.
    """
    given = dict(parents or {})
    new = [name for name in ours if name not in set(theirs)]
    if not theirs or not new or set(theirs) - set(ours):
        if given:
            allowed = "none: this run's classes are not those of the run it starts from and more"
            raise invalid(OPTION, given, allowed)
        return None
    for child, parent in given.items():
        if child not in new:
            raise unknown(OPTION, str(child), new)
        if parent not in theirs:
            raise unknown(f"{OPTION}[{child!r}]", str(parent), theirs)
    names = [given.get(name, name) for name in ours]
    rows = tuple(theirs.index(name) if name in theirs else -1 for name in names)
    return Growth(rows, len(theirs), scale_of(models, len(theirs)))


def scale_of(models: Any, count: int) -> float:
    """What rows of a model of `count` classes are multiplied by to mean the same in these networks.

    models: a network, or several by name. One that multiplies its rows by a function of the number
    of classes says so by `class_scale`; None: each row is normalised by all, so that what old
    classes are would change. Raises UsageError for such.
    """
    several: Iterable[Any] = models.values() if isinstance(models, Mapping) else [models]
    scale = 1.0
    for model in several:
        ours = getattr(model, "class_scale", 1.0)
        if ours is None:
            allowed = "networks whose rows of classes do not depend on each other"
            raise invalid("config.start", f"new classes of {type(model).__name__}", allowed)
        if ours != 1.0:
            scale *= model.clone(num_classes=count).class_scale / ours
    return scale


def said(growth: Growth, theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Which classes are new, and what they begin as."""
    new = [n for n, name in enumerate(ours) if name not in set(theirs)]
    as_what = [f"as {theirs[growth.rows[n]]!r}" if growth.rows[n] >= 0 else "fresh" for n in new]
    return ", ".join(f"{ours[n]!r} ({what})" for n, what in zip(new, as_what, strict=True))
