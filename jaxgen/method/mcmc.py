"""Markov chains on batches of examples: Langevin steps, with and without a correction.

A kernel is `step(keys [B], x [B, ...]) -> x`; row i moves by keys[i] alone. log_density(x) -> [B].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.method.streams import fold, normal

PROPOSAL, ACCEPTED = range(2)
"""A move's streams: the proposal's noise, and whether it is accepted."""

LogDensity = Callable[[jax.Array], jax.Array]
Kernel = Callable[[jax.Array, jax.Array], jax.Array]


def langevin(log_density: LogDensity, step: float, noise: float | None = None) -> Kernel:
    """x + step / 2 grad ln p(x) + noise N(0, I): the unadjusted Langevin algorithm.

    noise: None for sqrt(step), with which N(0, s^2) becomes N(0, s^2 / (1 - step / (4 s^2))); a
    smaller one is the cold chain that energy-based models of images are trained with (Grathwohl et
    al. 2020, sec. 3).
    """
    scale = step**0.5 if noise is None else noise

    def move(keys: jax.Array, x: jax.Array) -> jax.Array:
        slope = jax.grad(lambda y: log_density(y).sum())(x)
        return x + step / 2 * slope + scale * normal(keys, x.shape[1:])

    return move


def mala(log_density: LogDensity, step: float) -> Kernel:
    """Langevin with Metropolis' correction, whose law is exactly p (Roberts & Tweedie 1996)."""

    def drift(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(log_density, x)
        return value, x + step / 2 * pull(jnp.ones_like(value))[0]

    def move(keys: jax.Array, x: jax.Array) -> jax.Array:
        value, mean = drift(x)
        proposal = mean + step**0.5 * normal(fold(keys, PROPOSAL), x.shape[1:])
        other, back = drift(proposal)
        gap = _square(proposal - mean) - _square(x - back)
        ratio = other - value + gap / (2 * step)
        accept = jnp.log(jax.vmap(jax.random.uniform)(fold(keys, ACCEPTED))) < ratio
        return jnp.where(accept.reshape(-1, *(1,) * (x.ndim - 1)), proposal, x)

    return move


def chain(kernel: Kernel, keys: jax.Array, x: jax.Array, steps: int) -> jax.Array:
    """x [B, ...] after `steps` moves, in one scan; step n uses fold_in(keys, n)."""

    def body(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        return kernel(fold(keys, number), x), None

    return jax.lax.scan(body, x, jnp.arange(steps))[0]


def _square(a: jax.Array) -> jax.Array:
    return (a**2).reshape(a.shape[0], -1).sum(1)
