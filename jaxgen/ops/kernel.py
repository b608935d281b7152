"""What all kernels share: what they are compiled for, what they cost, running without a chip."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxgen.errors import unknown
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


def share(settings: Settings, rows: int, columns: int, steps: tuple[int, int]) -> float:
    """Of all blocks of scores, how many a kernel computes; all where queries are not the keys'.

    rows, columns: of a block; steps: blocks each way.
    """
    if not settings.masked or rows * steps[0] != columns * steps[1]:
        return 1.0
    with jax.ensure_compile_time_eval():
        last = settings.mask.last(jnp.arange(steps[0]) * rows + rows - 1)
        seen = jnp.minimum(last // columns + 1, steps[1]).sum()
    return float(seen) / math.prod(steps)


class Blocks:
    """Sizes of one call of flash attention, and the blocks that its scores are computed in.

    q [B, H, N, D], k [B, G, M, D]; rows, columns: queries and keys of a block. steps: blocks each
    way; shared: heads of queries for each head of keys; scores: how many are computed in all.
    """

    def __init__(self, q: Any, k: Any, settings: Settings, rows: int, columns: int) -> None:
        """Sizes and blocks of queries q and keys k, in blocks of rows x columns."""
        self.n, self.m = q.shape[2], k.shape[2]
        self.rows, self.columns, self.settings = rows, columns, settings
        self.steps = pl.cdiv(self.n, rows), pl.cdiv(self.m, columns)
        self.shared = q.shape[1] // k.shape[1]
        computed = share(settings, rows, columns, self.steps)
        self.scores = q.shape[0] * q.shape[1] * self.n * self.m * computed

    def last(self, i: Any, place: Any) -> Any:
        """The last key, from this device's first, that block i of queries sees; below 0: none.

        place: the first query's and the first key's place, and how many keys there are from there.
        """
        last = self.settings.mask.last(place[0] + (i + 1) * self.rows - 1) - place[1]
        return jnp.minimum(last, place[2] - 1)


_INTERPRET = contextvars.ContextVar("interpret", default="")


@contextlib.contextmanager
def interpreted(how: str = "quick") -> Iterator[None]:
    """Within it, kernels that are traced run step by step on any platform, slowly.

    how: "quick", as one compiled program; or "memory", which imitates a TPU's memories and finds
    what is read outside them (GPU kernels: as "quick"). Either way, what nobody wrote is NaN. What
    was compiled before stays what it was. Raises UsageError for another word.
    """
    if how not in ("quick", "memory"):
        raise unknown("interpreted", how, ("quick", "memory"))
    token = _INTERPRET.set(how)
    try:
        yield
    finally:
        _INTERPRET.reset(token)


def interpreting() -> str:
    """How kernels traced now are to be interpreted; "" if they are not."""
    return _INTERPRET.get()
