"""Gradient-free classifier guidance (Shenoy et al. 2024): away from the class it looks like."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, pushed


def gfcg(
    guided: Denoiser,
    labels: jax.Array,
    by_label: Callable[[jax.Array], Denoiser],
    logits: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    weight: float = 1.0,
) -> Denoiser:
    """guided + w (cond - reference), the reference class and w chosen for each image and call.

    labels [B] int32. by_label(labels) -> the denoiser of those labels, without memory. logits(
    x0[B, ...], t) -> [B, C], a classifier of clean images, never differentiated: it looks at the
    conditional x0, the reference is its most probable wrong class, and w = weight (1 - p(label)),
    so that confident images are left alone. One network call more than `guided`, which is `cond`
    itself or a pair that `cond` is the good one of (CFG and autoguidance add up with it). weight =
    0 is `guided` itself.
    """
    if weight == 0:
        return guided

    def push(out: Prediction, p: Prediction, at: At) -> Prediction:
        scores = logits(p.x0, at.t)
        wrong, confidence = reference(scores, labels)
        r, _ = by_label(wrong)(at.keys, at.x, at.t, ())
        w = expand(weight * (1 - confidence), at.x)
        x0, eps = out.x0 + w * (p.x0 - r.x0), out.eps + w * (p.eps - r.eps)
        return Prediction(x0, eps, out.variance)

    return pushed(guided, push)


def reference(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the most probable class other than labels [B], p(labels) [B]) of logits [B, C]."""
    is_label = jax.nn.one_hot(labels, scores.shape[-1], dtype=bool)
    wrong = jnp.argmax(jnp.where(is_label, -jnp.inf, scores), axis=-1)
    return wrong, jnp.where(is_label, jax.nn.softmax(scores, axis=-1), 0).sum(-1)
