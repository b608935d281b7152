"""Noising anew: how models that draw x0, rather than say its mean, sample in a few calls."""

from __future__ import annotations

import jax

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.solvers.base import Carry, Solver, gaussian, predict


def renoise(path: Path) -> Solver:
    """x0 with fresh noise of time s, one call a step (Song et al. 2023, algorithm 1).

    For distilled students and consistency models. Of a denoiser's x0, which is a mean, samples have
    too little variance.
    """

    def moments(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        return expand(path.alpha(s), x) * p.x0, expand(path.sigma(s), x), (carry[0], memory)

    return gaussian(moments, order=0)
