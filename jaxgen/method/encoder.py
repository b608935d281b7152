"""`Encoder`: a frozen function from examples to vectors, its arrays apart from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """apply(params, x [B, *shape]) -> vectors [B, D], or a tree of maps; called, with its params.

    A program that is given `params` as an argument, not as a constant, does not carry them. A plain
    function of x is an encoder without any (`encoder_of`).
    """

    apply: Callable[[PyTree, jax.Array], Any]
    params: PyTree = None

    def __call__(self, x: jax.Array) -> Any:
        """x [B, *shape] -> [B, D]."""
        return self.apply(self.params, x)


def encoder_of(value: Any) -> Encoder:
    """An `Encoder` as it is; a function x -> vectors as one without arrays."""
    return value if isinstance(value, Encoder) else Encoder(lambda params, x: value(x))
