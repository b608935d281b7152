"""Rescaled guidance (Lin et al. 2023): the guided output keeps the conditional one's contrast."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, to_prediction
from jaxgen.families.diffusion.guidance.pair import At, Guided, needs_pair, ruled

SPACES = ("x0", "eps", "v")


def rescale(
    guided: Denoiser,
    *,
    share: float = 0.7,
    kind: Literal["x0", "eps", "v"] = "v",
    path: Path | None = None,
) -> Guided:
    """The guided output times share std(good) / std(guided) + 1 - share.

    Deviations are each image's, over all its elements. kind: the output that is scaled (theirs is
    v). share = 0 is `guided` itself, and so is weight = 1.
    """
    old = needs_pair(guided, "rescale")
    if not 0 <= share <= 1:
        raise invalid("guidance.share", share, "0 <= share <= 1")
    if kind not in SPACES:
        raise unknown("guidance.kind", kind, SPACES)
    if share == 0 or old.weight == 1:
        return old
    path = path_of(guided, path)

    def output(p: Prediction, t: jax.Array) -> jax.Array:
        return {"x0": p.x0, "eps": p.eps, "v": p.v(path, t)}[kind]

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        out, memory = old.rule(p, q, at, memory)
        good, guided_output = output(p, at.t), output(out, at.t)
        ratio = _deviation(good) / jnp.maximum(_deviation(guided_output), TINY)
        scaled = (share * expand(ratio, guided_output) + 1 - share) * guided_output
        return to_prediction(kind, scaled, at.x, at.t, path, variance=p.variance), memory

    return ruled(old, rule, old.start)


def _deviation(a: jax.Array) -> jax.Array:
    return a.std(axis=tuple(range(1, a.ndim)))
