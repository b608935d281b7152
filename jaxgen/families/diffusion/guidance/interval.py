"""Guidance in a limited interval (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import needs_pair


def limit(
    guided: Denoiser, low: float = 0.0, high: float = 1.0, *, cond: Denoiser | None = None
) -> Denoiser:
    """`guided` where low <= t <= high, `cond` elsewhere (their eq. 5, with t in place of sigma).

    cond: by default the good one of the pair that `guided` is. Outside the interval the guided
    branch is not evaluated.
    """
    if not 0 <= low <= high <= 1:
        raise invalid("guidance.low", (low, high), "0 <= low <= high <= 1")
    plain = cond
    if plain is None:
        plain = needs_pair(guided, "limit").good
    if guided.call is plain.call or (low == 0 and high == 1):
        return guided

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        if t.ndim:
            # Each image at a time of its own (adaptive solvers): both, and choose.
            (p, first), (q, second) = guided(keys, x, t, memory[0]), plain(keys, x, t, memory[1])
            inside = within_times(t, low, high).reshape(t.shape + (1,) * (x.ndim - 1))
            chosen = jax.tree.map(lambda a, b: jnp.where(inside, a, b), p, q)
            return chosen, (first, second)

        def within(memory: Memory) -> tuple[Prediction, Memory]:
            p, first = guided(keys, x, t, memory[0])
            return p, (first, memory[1])

        def outside(memory: Memory) -> tuple[Prediction, Memory]:
            p, second = plain(keys, x, t, memory[1])
            return p, (memory[0], second)

        return jax.lax.cond(within_times(t, low, high), within, outside, memory)

    return Denoiser(
        call,
        init=lambda x: (guided.init(x), plain.init(x)),
        calls=lambda t: guided.calls(t) if within_times(t, low, high) else plain.calls(t),
        path=guided.path,
    )


def within_times(t: jax.Array | float, low: float, high: float) -> Any:
    """low <= t <= high, in float32 for both who ask: the count of calls and the calls made."""
    time = t.astype(jnp.float32) if isinstance(t, jax.Array) else np.float32(t)
    return (time >= np.float32(low)) & (time <= np.float32(high))
