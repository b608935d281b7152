"""Universal guidance (Bansal et al. 2023): by any function of the clean estimate x0."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0

Score = Callable[[jax.Array, jax.Array], jax.Array]
Answer = tuple[jax.Array, tuple[Prediction, Memory]]


def universal(
    guided: Denoiser, log_prob: Score, *, weight: float = 1.0, path: Path | None = None
) -> Denoiser:
    """eps - weight sigma grad_x log_prob(x0(x), t), and x0 to match: forward guidance.

    log_prob(x0[B, ...], t) -> [B] sees clean estimates only, so any classifier or likelihood will
    do; the gradient goes through the denoiser. weight = 0 is `guided` itself. Where alpha is 0 x0
    cannot move.
    """
    if weight == 0:
        return guided

    def value(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory) -> Answer:
        p, after = guided(keys, x, t, memory)
        return log_prob(p.x0, t), (p, after)

    return uphill(guided, value, weight, path_of(guided, path))


def uphill(guided: Denoiser, value: Callable[..., Answer], weight: float, path: Path) -> Denoiser:
    """`guided` with weight times the gradient in x of a value in its score.

    value(keys, x, t, memory) -> values [B], and what `guided` answers there.
    """

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        def total(y: jax.Array) -> tuple[jax.Array, tuple[Prediction, Memory]]:
            values, answer = value(keys, y, t, memory)
            return values.sum(), answer

        slope, (p, after) = jax.grad(total, has_aux=True)(x)
        return along(p, slope, weight, path, t), after

    return Denoiser(call, init=guided.init, calls=guided.calls, path=path)


def along(
    p: Prediction, slope: jax.Array, weight: float | jax.Array, path: Path, t: jax.Array
) -> Prediction:
    """eps - weight sigma slope, and the x0 that keeps x = alpha x0 + sigma eps where it was."""
    sigma, alpha = expand(path.sigma(t), slope), expand(path.alpha(t), slope)
    x0 = p.x0 + weight * sigma**2 * alpha / (alpha**2 + TINY) * slope
    return Prediction(x0, p.eps - weight * sigma * slope, p.variance)


def backward(
    guided: Denoiser,
    log_prob: Score,
    *,
    rate: float = 0.1,
    steps: int = 5,
    path: Path | None = None,
) -> Denoiser:
    """x0 after `steps` of gradient ascent on log_prob by `rate`: backward guidance.

    No gradient goes through the denoiser; eps follows from x and the new x0. steps = 0 is `guided`.
    """
    if steps < 0 or rate <= 0:
        raise invalid("guidance.steps", (steps, rate), "steps >= 0 and rate > 0")
    if steps == 0:
        return guided
    path = path_of(guided, path)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = guided(keys, x, t, memory)
        slope = jax.grad(lambda x0: log_prob(x0, t).sum())
        x0 = jax.lax.fori_loop(0, steps, lambda _, x0: x0 + rate * slope(x0), p.x0)
        return from_x0(jnp.asarray(x0), x, t, path, p.variance), memory

    return Denoiser(call, init=guided.init, calls=guided.calls, path=path)
