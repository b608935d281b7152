"""Laws have names, which stand first in the message of whatever breaks them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def law(name: str) -> Iterator[None]:
    """A block or, as a decorator, a function that holds one law.

    An AssertionError within it comes out as "law 'NAME': ...", and keeps its name where laws are
    nested. Every other exception is the piece's own and passes through.
    """
    try:
        yield
    except AssertionError as error:
        if str(error).startswith("law '"):
            raise
        raise AssertionError(f"law '{name}': {str(error).strip()}") from error
