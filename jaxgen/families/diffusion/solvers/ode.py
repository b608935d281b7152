"""Solvers of the probability-flow ODE in general: Euler, Heun, Adams-Bashforth."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.solvers.base import Carry, Solver, predict


def euler(path: Path) -> Solver:
    """Euler's method on dx = x0 dalpha + eps dsigma, the flow with alpha and sigma as clocks.

    On the linear path this is Euler in t, on EDM's path Euler in sigma (Karras et al. 2022). On
    every path it is DDIM with eta = 0: alpha_s x0 + sigma_s eps, finite where the schedule's slope
    is not (VP and VE at t=0).
    """

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        return p.mix(path, s), (carry[0], memory)

    return Solver(step=step, order=1)


def heun(path: Path) -> Solver:
    """Heun's method (Karras et al. 2022, algorithm 1): trapezoid on dx = x0 dalpha + eps dsigma.

    The last step, to t=0, is Euler's, and its second evaluation is really skipped: 18 steps are 35
    network calls.
    """

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        d_alpha, d_sigma = path.alpha(s) - path.alpha(t), path.sigma(s) - path.sigma(t)

        def increment(p: Prediction) -> jax.Array:
            return d_alpha * p.x0 + d_sigma * p.eps

        p, memory = predict(denoiser, x, t, carry[1], keys)
        first = increment(p)

        def correct(memory: Any) -> tuple[jax.Array, Any]:
            q, memory = predict(denoiser, x + first, s, memory, keys, 1)
            return 0.5 * (first + increment(q)), memory

        change, memory = jax.lax.cond(s > 0, correct, lambda m: (first, m), memory)
        return x + change, (carry[0], memory)

    return Solver(
        step=step, order=2, times=lambda n, t, s: [float(t), float(s)] if s > 0 else [float(t)]
    )


def adams_bashforth(path: Path, order: int = 3) -> Solver:
    """Adams-Bashforth of order 1 to 4 with uneven steps (Liu et al. 2022, PNDM; Katherine Crowson's
    LMS), one call a step.

    In the coordinates of `Path.fraction`: with f = sigma / (alpha + sigma), x / (alpha + sigma)
    moves at speed eps - x0 per unit of f, so the scheme is the same for every path. Lower orders
    while there is no history yet.
    """
    if order not in (1, 2, 3, 4):
        raise invalid("solver.order", order, "1, 2, 3 or 4")

    def init(x: jax.Array) -> Any:
        shape = (order - 1, *x.shape)
        return jnp.zeros((), jnp.int32), jnp.zeros(order - 1, x.dtype), jnp.zeros(shape, x.dtype)

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        (count, nodes, slopes), memory = carry
        p, memory = predict(denoiser, x, t, memory, keys)
        f, g = path.fraction(t), path.fraction(s)
        nodes = jnp.concatenate([f[None], nodes])
        slopes = jnp.concatenate([(p.eps - p.x0)[None], slopes])
        weights = jnp.stack([_weights(nodes[:k], f, g, order) for k in range(1, order + 1)])
        used = weights[jnp.minimum(count, order - 1)]
        moved = x / (path.alpha(t) + path.sigma(t))
        # Term by term: a dot product's rounding would depend on the batch's shape.
        for k in range(order):
            moved = moved + used[k] * slopes[k]
        out = (path.alpha(s) + path.sigma(s)) * moved
        return out, ((count + 1, nodes[:-1], slopes[:-1]), memory)

    return Solver(step=step, order=order, init=init)


def _weights(nodes: jax.Array, start: jax.Array, end: jax.Array, size: int) -> jax.Array:
    """Integrals from start to end of the Lagrange polynomials on `nodes`, padded with 0 to `size`.

    By two-point Gauss-Legendre, which is exact for the cubics of four nodes. Nodes that coincide
    (no history yet) give numbers that the caller does not use.
    """
    count = nodes.shape[0]
    middle, half = (start + end) / 2, (end - start) / 2
    total = jnp.zeros(count, nodes.dtype)
    for sign in (-1, 1):
        z = middle + sign * half / math.sqrt(3)
        gaps = nodes[:, None] - nodes[None, :]
        off = ~jnp.eye(count, dtype=bool)
        factors = jnp.where(off & (gaps != 0), (z - nodes)[None, :] / jnp.where(gaps, gaps, 1), 1)
        total += half * factors.prod(1)
    return jnp.concatenate([total, jnp.zeros(size - count, nodes.dtype)])
