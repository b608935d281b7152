"""Models compute in float32, whatever JAX's default precision is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def single(fn: Callable[P, R]) -> Callable[P, R]:
    """fn with JAX_ENABLE_X64 off within: state, parameters and losses are float32 by contract."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(False):
            return fn(*args, **kwargs)

    return call
