"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

import jax

from jaxgen.families.diffusion.denoiser import Denoiser, Memory, together
from jaxgen.families.diffusion.prediction import Prediction


def cfg(cond: Denoiser, uncond: Denoiser, *, weight: float = 1.0) -> Denoiser:
    """uncond + weight (cond - uncond) on x0 and eps alike (their eq. 6, whose w is ours minus 1).

    weight = 1 is `cond` itself and 0 `uncond` itself: nothing is computed that is not used. A
    learned variance stays the conditional one's.
    """
    return extrapolate(cond, uncond, weight)


def extrapolate(good: Denoiser, bad: Denoiser, weight: float) -> Denoiser:
    """bad + weight (good - bad); one batched call where both are the same network."""
    if weight == 1:
        return good
    if weight == 0:
        return bad

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        (p, q), memories = together([good, bad], keys, x, t, memory)
        x0 = p.x0 + (weight - 1) * (p.x0 - q.x0)
        eps = p.eps + (weight - 1) * (p.eps - q.eps)
        return Prediction(x0, eps, p.variance), tuple(memories)

    return Denoiser(
        call,
        init=lambda x: (good.init(x), bad.init(x)),
        calls=lambda t: good.calls(t) + bad.calls(t),
    )
