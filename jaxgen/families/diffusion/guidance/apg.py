"""Adaptive projected guidance (Sadat et al. 2024): guidance without what only saturates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0
from jaxgen.families.diffusion.guidance.pair import At, Guided, needs_pair, ruled


def apg(
    guided: Denoiser,
    *,
    eta: float = 0.0,
    momentum: float = 0.0,
    radius: float = math.inf,
    path: Path | None = None,
) -> Guided:
    """x0_good + (w - 1) (d_orthogonal + eta d_parallel), d = x0_good - x0_bad.

    d first gets `momentum` (negative in the paper) times the sum before it, then is cut to norm
    `radius`, then is split along x0_good; all of it for each image. eta = 1, momentum = 0, radius =
    inf is `guided` itself, and so is w = 1. eps follows from x and the new x0.
    """
    old = needs_pair(guided, "apg")
    if radius <= 0:
        raise invalid("guidance.radius", radius, "radius > 0")
    if not -1 < momentum < 1:
        raise invalid("guidance.momentum", momentum, "-1 < momentum < 1")
    if old.weight == 1 or (eta == 1 and momentum == 0 and radius == math.inf):
        return old
    path = path_of(guided, path)

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        total = p.x0 - q.x0 + momentum * memory
        update = project(clip_norm(total, radius), p.x0, eta)
        x0 = p.x0 + (old.weight - 1) * update
        return from_x0(x0, at.x, at.t, path, p.variance), total

    return ruled(old, rule, jnp.zeros_like)


def clip_norm(d: jax.Array, radius: float) -> jax.Array:
    """Each d[b] [B, ...] scaled to a norm of at most `radius`."""
    return d * jnp.minimum(1.0, radius / jnp.maximum(expand(_norm(d), d), TINY))


def project(d: jax.Array, onto: jax.Array, eta: float) -> jax.Array:
    """d with its part along `onto` multiplied by eta, for each image of [B, ...]."""
    unit = onto / jnp.maximum(expand(_norm(onto), onto), TINY)
    axes = tuple(range(1, d.ndim))
    along = expand((d * unit).sum(axes), d) * unit
    return d - (1 - eta) * along


def _norm(d: jax.Array) -> jax.Array:
    return jnp.sqrt((d**2).sum(tuple(range(1, d.ndim))))
