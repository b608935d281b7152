"""Columns of arrays: checked when a source is opened, and mirrored where images are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxgen.errors import invalid
from jaxgen.method.columns import RESERVED, Column

_KINDS = {"i": np.int32, "u": np.int32, "f": np.float32, "b": np.bool_}


def checked(
    arrays: Mapping[str, np.ndarray], count: int, *, option: str = "source.columns"
) -> dict[str, np.ndarray]:
    """Arrays [count, ...] as batches hold them: bytes, int32, float32 or bool.

    Raises UsageError, naming the column, for another length, another kind of values, integers that
    int32 cannot hold, and names that a batch has for itself.
    """
    found = {}
    for name, array in arrays.items():
        if name in RESERVED or not name.isidentifier():
            allowed = f"a name in Python's sense, and none of {', '.join(RESERVED)}"
            raise invalid(option, name, allowed)
        if array.ndim < 1 or len(array) != count:
            raise invalid(f"{option}: {name}", array.shape, f"one entry an image: ({count}, ...)")
        if array.dtype.kind not in _KINDS:
            raise invalid(f"{option}: {name}", str(array.dtype), "numbers or booleans")
        kind = _KINDS[array.dtype.kind]
        if array.dtype != np.uint8:
            small: np.ndarray = array.astype(kind)
            if array.dtype.kind in "iu" and (small != array).any():
                raise invalid(f"{option}: {name}", str(array.dtype), "integers that int32 holds")
            array = small
        found[name] = array
    return found


def described(arrays: Mapping[str, np.ndarray]) -> dict[str, Column]:
    """What a Spec says of arrays [N, ...]."""
    return {name: Column(a.shape[1:], a.dtype.name) for name, a in arrays.items()}


def rows(
    array: np.ndarray, indices: np.ndarray, mirrored: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Rows of a column, fresh; those that lie on images of `shape` left to right where mirrored."""
    found = array[indices]
    if mirrored.any() and Column(array.shape[1:], array.dtype.name).lies_on(shape):
        found[mirrored] = found[mirrored][:, :, ::-1]
    return found
