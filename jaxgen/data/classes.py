"""Classes have names, and where two sets meet, labels are matched by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.errors import UsageError, invalid

_MOST = 50


def natural(names: Sequence[str]) -> tuple[str, ...]:
    """Names sorted with the numbers in them by value: 2 before 10."""

    def key(name: str) -> tuple[Any, str]:
        words = re.split("([0-9]+)", name)
        return [int(w) if i % 2 else w for i, w in enumerate(words)], name

    return tuple(sorted(names, key=key))


def matched(
    given: Sequence[str], wanted: Sequence[str], *, option: str, whose: str, fewer: bool = False
) -> np.ndarray:
    """The label among `wanted` of each class in `given`, by name: int32 [len(given)].

    option, whose: what a message calls the first and the second. fewer: whether `given` may lack
    classes. Raises UsageError, with both lists, unless the names are the same.
    """
    if set(given) - set(wanted) or (not fewer and set(wanted) - set(given)):
        raise mismatch(option, given, wanted, whose)
    place = {name: label for label, name in enumerate(wanted)}
    return np.array([place[name] for name in given], np.int32)


def mismatch(option: str, given: Sequence[str], wanted: Sequence[str], whose: str) -> UsageError:
    """The error where two sets are of different classes: both lists, and what only one has."""
    apart = [
        f"{where}: {listed([name for name in one if name not in set(other)])}."
        for where, one, other in (("Only here", given, wanted), ("Only there", wanted, given))
        if set(one) - set(other)
    ]
    odd = next((name for name in given if name not in set(wanted)), None)
    close = [] if odd is None else difflib.get_close_matches(odd, wanted, n=1, cutoff=0.5)
    apart += [f"Did you mean {close[0]!r} by {odd!r}?"] if close else []
    fix = " ".join(apart) or "They are the same in another order."
    return invalid(option, f"classes {listed(given)}", f"{whose}: {listed(wanted)}", fix)


def listed(names: Sequence[str]) -> str:
    """Names with commas between, the first ones of many."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
