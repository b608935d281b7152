"""Guidance in a limited interval (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.guidance.pair import needs_pair
from jaxgen.families.diffusion.prediction import Prediction


def limit(
    guided: Denoiser, low: float = 0.0, high: float = 1.0, *, cond: Denoiser | None = None
) -> Denoiser:
    """`guided` where low <= t <= high, `cond` elsewhere (their eq. 5, with t in place of sigma).

    cond: by default the good one of the pair that `guided` is. Outside the interval the guided
    branch is not evaluated.
    """
    if not 0 <= low <= high <= 1:
        raise invalid("guidance.low", (low, high), "0 <= low <= high <= 1")
    if guided is cond:
        return guided
    plain = needs_pair(guided, "limit").good if cond is None else cond

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        if t.ndim:
            # Each image at a time of its own (adaptive solvers): both, and choose.
            (p, first), (q, second) = guided(keys, x, t, memory[0]), plain(keys, x, t, memory[1])
            inside = ((t >= low) & (t <= high)).reshape(t.shape + (1,) * (x.ndim - 1))
            chosen = jax.tree.map(lambda a, b: jnp.where(inside, a, b), p, q)
            return chosen, (first, second)

        def within(memory: Memory) -> tuple[Prediction, Memory]:
            p, first = guided(keys, x, t, memory[0])
            return p, (first, memory[1])

        def outside(memory: Memory) -> tuple[Prediction, Memory]:
            p, second = plain(keys, x, t, memory[1])
            return p, (memory[0], second)

        return jax.lax.cond((t >= low) & (t <= high), within, outside, memory)

    return Denoiser(
        call,
        init=lambda x: (guided.init(x), plain.init(x)),
        calls=lambda t: guided.calls(t) if low <= t <= high else plain.calls(t),
        path=guided.path,
    )
