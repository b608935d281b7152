"""Classifier guidance (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.universal import along


def classifier(
    cond: Denoiser,
    path: Path,
    log_prob: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    weight: float = 1.0,
) -> Denoiser:
    """eps - weight sigma grad log p(label | x_t) (their algorithm 2), and x0 to match.

    log_prob(x[B, ...], t) -> [B] already holds its labels; it sees noisy images. `cond` may be an
    unconditional denoiser, as in Song et al. 2021, eq. 14. Where alpha is 0 x0 cannot move.
    """
    if weight == 0:
        return cond

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = cond(keys, x, t, memory)
        slope = jax.grad(lambda y: log_prob(y, t).sum())(x)
        return along(p, slope, weight, path, t), memory

    return Denoiser(call, init=cond.init, calls=cond.calls, path=path)
