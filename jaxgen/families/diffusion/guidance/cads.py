"""CADS (Sadat et al. 2023): the condition is noise at first and itself at last."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import TINY, expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import Guided, pair
from jaxgen.method import fold, normal

STREAM = 0x5CAD5
"""The number that a call's keys are folded with, so that its noise is nobody else's."""


def cads(
    guided: Denoiser,
    *,
    low: float = 0.6,
    high: float = 0.9,
    scale: float = 0.25,
    mix: float = 1.0,
) -> Denoiser:
    """The condition y is annealed: sqrt(g) y + scale sqrt(1 - g) noise, g = g(t).

    low, high: their tau_1 and tau_2, see `share`. mix: their psi, see `anneal`. Of a pair only the
    good one is annealed, and every rule stays: `cads(cfg(...))` is `cfg(cads(cond), uncond, ...)`.
    low = 1 is `guided` itself. The two can then not be one batched call.
    """
    if not 0 <= low <= high <= 1:
        raise invalid("guidance.low", (low, high), "0 <= low <= high <= 1")
    if not 0 <= mix <= 1:
        raise invalid("guidance.mix", mix, "0 <= mix <= 1")
    if scale < 0:
        raise invalid("guidance.scale", scale, "scale >= 0")
    if low == 1:
        return guided
    if isinstance(guided, Guided):
        good = cads(guided.good, low=low, high=high, scale=scale, mix=mix)
        if guided.weight == 0 and guided.channels is None:
            return guided
        new = pair(good, guided.bad, guided.weight, guided.rule, guided.start, guided.channels)
        if guided.call is guided.good.call:
            return dataclasses.replace(new, call=good.call, init=good.init, calls=good.calls)
        return new
    if guided.recondition is None:
        raise invalid(
            "guidance.cads", "a denoiser without a condition vector",
            "a network's, or one that has `recondition`",
        )  # fmt: skip
    change = guided.recondition

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        g = share(t, low, high)

        def noisy(y: jax.Array) -> jax.Array:
            noise = normal(fold(keys, STREAM), y.shape[1:], jnp.float32)
            return anneal(y, noise, g, scale, mix)

        return change(noisy)(keys, x, t, memory)

    return Denoiser(call, init=guided.init, calls=guided.calls, path=guided.path)


def share(t: jax.Array, low: float, high: float) -> jax.Array:
    """g(t): 1 where t <= low, 0 where t >= high, a straight line between."""
    inside = (high - t) / max(high - low, TINY)
    return jnp.where(t <= low, 1.0, jnp.where(t >= high, 0.0, inside))


def anneal(y: jax.Array, noise: jax.Array, g: jax.Array, scale: float, mix: float) -> jax.Array:
    """sqrt(g) y + scale sqrt(1 - g) noise for y, noise [B, E], then their rescaling.

    mix = 1 gives each vector the mean and the deviation of its y over E, 0 leaves it as it is, and
    between the two is linear. Where g = 1 y itself, to the last bit.
    """
    g = expand(g, y)
    noisy = jnp.sqrt(g) * y + scale * jnp.sqrt(1 - g) * noise
    mean, deviation = y.mean(-1, keepdims=True), y.std(-1, keepdims=True)
    centred = noisy - noisy.mean(-1, keepdims=True)
    fitted = centred / jnp.maximum(noisy.std(-1, keepdims=True), TINY) * deviation + mean
    return jnp.where(g == 1, y, mix * fitted + (1 - mix) * noisy).astype(y.dtype)
