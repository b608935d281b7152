"""Kernels without their chip: interpreted, for tests and for looking into them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_INTERPRET = contextvars.ContextVar("interpret", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within it, kernels that are traced run step by step on any platform, slowly.

    Memory that a TPU kernel did not write is NaN. What was compiled before stays what it was.
    """
    token = _INTERPRET.set(True)
    try:
        yield
    finally:
        _INTERPRET.reset(token)


def interpreting() -> bool:
    """Whether kernels traced now are to be interpreted."""
    return _INTERPRET.get()
