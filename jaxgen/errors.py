"""Errors that teach: what was given, what is allowed, and the corrected line."""

from __future__ import annotations

import difflib
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


def unknown(option: str, given: str, allowed: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that does not exist; names the closest one that does."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    fix = f"Did you mean {close[0]!r}?" if close else None
    return invalid(option, given, ", ".join(names) if names else "nothing", fix)
