"""Guidance by an off-the-shelf classifier, calibrated (Ma et al. 2023, "EluCD")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.universal import along


def elucd(
    guided: Denoiser,
    labels: jax.Array,
    logits: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    weight: float = 1.0,
    joint: float = 1.0,
    marginal: float = 1.0,
    schedule: Literal["constant", "sine"] = "constant",
    path: Path | None = None,
) -> Denoiser:
    """eps - weight s(t) sigma grad_x0 [joint f_y - logsumexp(marginal f)] at the estimate x0.

    logits(x0[B, ...], t) -> f [B, C] is a classifier of clean images, best smoothed (`softplus`)
    and calibrated (`calibration_error`); labels [B] int32. joint, marginal: inverse temperatures;
    marginal < joint gives weight to the density of the class. The gradient
    stops at x0, so the denoiser is not differentiated. schedule: s(t) = 1, or sin(pi t), 0 at both
    ends. weight = 0 is `guided` itself.
    """
    if weight == 0:
        return guided
    if schedule not in ("constant", "sine"):
        raise invalid("guidance.schedule", schedule, "'constant', 'sine'")
    path = path_of(guided, path)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = guided(keys, x, t, memory)

        def value(x0: jax.Array) -> jax.Array:
            return tempered(logits(x0, t), labels, joint, marginal).sum()

        slope = jax.grad(value)(p.x0)
        scale = jnp.sin(jnp.pi * t) if schedule == "sine" else jnp.ones_like(t)
        scale = scale.reshape(scale.shape + (1,) * (x.ndim - 1)) if t.ndim else scale
        return along(p, slope, weight * scale, path, t), memory

    return Denoiser(call, init=guided.init, calls=guided.calls, path=path)


def tempered(f: jax.Array, labels: jax.Array, joint: float, marginal: float) -> jax.Array:
    """joint f_y - logsumexp(marginal f) of logits [B, C] and labels [B], in nats, [B]."""
    of_label = jnp.take_along_axis(f, labels[:, None], axis=-1)[:, 0]
    return joint * of_label - jax.nn.logsumexp(marginal * f, axis=-1)


def softplus(beta: float) -> Callable[[jax.Array], jax.Array]:
    """ln(1 + e^(beta x)) / beta, a ReLU with a gradient everywhere; the ReLU as beta grows."""
    if beta <= 0:
        raise invalid("softplus.beta", beta, "beta > 0")
    return lambda x: jax.nn.softplus(beta * x) / beta


def calibration_error(probs: jax.Array, labels: jax.Array, bins: int = 15) -> jax.Array:
    """Expected calibration error of probabilities [N, C] against labels [N], in [0, 1].

    The mean over samples of |accuracy - confidence| of their bin, bins of equal width (Guo et al.
    2017); their integral calibration error is its mean over noise levels.
    """
    confidence = probs.max(-1)
    right = (probs.argmax(-1) == labels).astype(probs.dtype)
    bin_of = jnp.clip((confidence * bins).astype(jnp.int32), 0, bins - 1)
    gap = jax.ops.segment_sum(right - confidence, bin_of, bins)
    return jnp.abs(gap).sum() / labels.shape[0]
