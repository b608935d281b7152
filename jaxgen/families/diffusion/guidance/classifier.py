"""Classifier guidance (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxgen.families.diffusion.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.path import TINY, Path, expand
from jaxgen.families.diffusion.prediction import Prediction


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
        sigma, alpha = expand(path.sigma(t), x), expand(path.alpha(t), x)
        # x = alpha x0 + sigma eps stays true: x0 moves by sigma^2 / alpha times the slope.
        x0 = p.x0 + weight * sigma**2 * alpha / (alpha**2 + TINY) * slope
        return Prediction(x0, p.eps - weight * sigma * slope, p.variance), memory

    return Denoiser(call, init=cond.init, calls=cond.calls, path=path)
