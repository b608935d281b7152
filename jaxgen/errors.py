"""Errors that teach: what was given, what is allowed, and the corrected line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class UsageError(ValueError):
    """The user asked for something that cannot be done; the command line ends with exit code 2.

    The message names the option, what was given and what is allowed. Anything that is not the
    user's input (a bug of ours, a broken disk) is some other exception.
    """


class Failure(RuntimeError):
    """A run that cannot go on, though the input was right; exit code 1 and one message."""


class Lost(Failure):
    """A process of the run was lost or never came; exit code 75: the same command resumes."""

    code = 75


def invalid(option: str, given: object, allowed: str, fix: str | None = None) -> UsageError:
    """A `UsageError` in the shape that all have: option, given, allowed, and a fix if known."""
    message = f"{option}: got {given!r}; allowed: {allowed}."
    return UsageError(f"{message} {fix}" if fix else message)


def check_seed(option: str, seed: object) -> int:
    """A seed, as every command takes it: JAX's keys hold 32 bits. Raises UsageError otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise invalid(option, seed, "a whole number from 0 to 4294967295 (2^32 - 1)")
    return seed


def check_finite(option: str, value: float) -> float:
    """A number that is one. Raises UsageError for NaN and the infinities."""
    if not math.isfinite(value):
        raise invalid(option, value, "a finite number")
    return value


MOST = 60
"""Names that a message lists; of more, the closest half."""


def closest(given: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Did you mean the name that is nearly the given one, as a question; None where none is."""
    near = difflib.get_close_matches(given, list(names), n=1, cutoff=cutoff)
    return f"Did you mean {near[0]!r}?" if near else None


def unknown(option: str, given: str, allowed: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that does not exist; names the closest one that does."""
    names = sorted(allowed)
    fix, shown = closest(given, names, cutoff=0.5), names
    if len(names) > MOST:
        shown = difflib.get_close_matches(given, names, n=MOST // 2, cutoff=0.0)
        shown = [*sorted(shown), f"... ({len(names)} in all)"]
    return invalid(option, given, ", ".join(shown) if shown else "nothing", fix)
