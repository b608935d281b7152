"""Noising anew: how models that draw x0, rather than say its mean, sample in a few calls."""

from __future__ import annotations

import jax

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.solvers.base import Carry, Solver, predict
from jaxgen.method import fold, normal
from jaxgen.method.streams import NOISE


def renoise(path: Path) -> Solver:
    """x0 with fresh noise of time s, one call a step (Song et al. 2023, algorithm 1).

    For distilled students and consistency models. Of a denoiser's x0, which is a mean, samples have
    too little variance.
    """

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        noise = normal(fold(keys, NOISE), x.shape[1:], x.dtype)
        return path.mix(p.x0, noise, s), (carry[0], memory)

    return Solver(step=step, order=0, stochastic=True)
