"""What all kernels share: what they are compiled for, what they cost, running without a chip."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxgen.ops.masks import Mask


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scores are q k^T scale. masked: whether the mask or the number of keys hides any."""

    scale: float
    mask: Mask
    masked: bool


def estimate(products: float, exponentials: float, *arrays: Any) -> pl.CostEstimate:
    """Costs from multiply-adds, exponentials, and arrays that are each moved once."""
    moved = sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)
    return pl.CostEstimate(
        flops=int(2 * products), transcendentals=int(exponentials), bytes_accessed=int(moved)
    )


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
