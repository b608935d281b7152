"""DiffIER: at every step the guided estimate is moved to where the model errs less.

"DiffIER: Optimizing Diffusion Models with Iterative Error Reduction": guidance leads samples to
where the network was not trained, its errors accumulate, and results depend on the weight; so an
error is reduced by iteration at every step, with the model frozen. We know the paper's abstract and
not its functional: ours is the training objective at the estimate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0
from jaxgen.families.diffusion.guidance.pair import one_of
from jaxgen.method import fold, normal

STREAM = 0xD1FF1E
"""The number that a call's keys are folded with, so that its noise is nobody else's."""


def diffier(
    guided: Denoiser,
    *,
    iterations: int = 2,
    rate: float = 0.5,
    draws: int = 1,
    path: Path | None = None,
) -> Denoiser:
    """x0 after `iterations` of descent on the error that the model makes of noise added to it.

    The model is the one that holds the label: of a pair, the good one. A step is
    x0 - rate (sigma / alpha)^2 grad `training_error`, which moves x0 of N(m, v) by a share
    rate (sigma^2 / (alpha^2 v + sigma^2))^2 of its way to m: much where all is noise, nothing at
    the end. rate <= 1 does not overshoot. eps follows from x and the new x0. draws: of noise, the
    same ones in every iteration. Each draw is a network call and its gradient. iterations = 0 is
    `guided` itself.
    """
    if iterations < 0 or rate <= 0:
        raise invalid("guidance.iterations", (iterations, rate), "iterations >= 0 and rate > 0")
    if draws < 1:
        raise invalid("guidance.draws", draws, "draws >= 1")
    if iterations == 0:
        return guided
    path, good = path_of(guided, path), one_of(guided)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = guided(keys, x, t, memory)
        sigma, alpha = expand(path.sigma(t), x), expand(path.alpha(t), x)
        step = rate * sigma**2 / (alpha**2 + TINY)
        slope = jax.grad(lambda x0: training_error(good, x0, t, keys, draws, path).sum())
        x0 = jax.lax.fori_loop(0, iterations, lambda _, x0: x0 - step * slope(x0), p.x0)
        return from_x0(jnp.asarray(x0), x, t, path, p.variance), memory

    def calls(t: float) -> float:
        return guided.calls(t) + iterations * draws * good.calls(t)

    return Denoiser(call, init=guided.init, calls=calls, path=path)


def training_error(
    denoiser: Denoiser,
    x0: jax.Array,
    t: jax.Array,
    keys: jax.Array,
    draws: int = 1,
    path: Path | None = None,
) -> jax.Array:
    """|eps - noise|^2 / 2, [B], of the denoiser at alpha x0 + sigma noise: the mean over draws."""
    path, memory = path_of(denoiser, path), denoiser.init(x0)

    def error(number: jax.Array) -> jax.Array:
        noise_keys = fold(fold(keys, STREAM), number)
        noise = normal(noise_keys, x0.shape[1:])
        p, _ = denoiser(noise_keys, path.mix(x0, noise, t), t, memory)
        return ((p.eps - noise) ** 2).reshape(x0.shape[0], -1).sum(-1) / 2

    return jax.lax.map(error, jnp.arange(draws)).mean(0)
