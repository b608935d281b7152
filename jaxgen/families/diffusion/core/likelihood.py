"""Exact likelihood by the probability-flow ODE (Song et al. 2021, eq. 39; Grathwohl et al. 2019).

In the coordinates of `Path.fraction`, f = sigma / (alpha + sigma) and y = x / (alpha + sigma), the
flow is dy/df = eps - x0, smooth at both ends for every path, and
log p(x at f=0) = log prior(y at f=1) + integral over f of div(eps - x0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.core.path import Path
from jaxgen.method import fold, normal

PROBES = 1
"""An example's first stream of its probes, one each."""

PyTree = Any
Trace = Literal["rademacher", "gaussian", "exact"]

START = 1e-3
"""sigma / alpha where the flow starts: at 0 itself eps is not determined. The data are read as if
with this much noise, which moves ln p by the order of its square."""


def flow_log_prob(
    denoiser: Denoiser,
    path: Path,
    x: jax.Array,
    keys: jax.Array,
    *,
    steps: int = 64,
    trace: Trace = "rademacher",
    probes: int = 1,
) -> jax.Array:
    """Log-density in nats [B] of x [B, ...] under the flow of a denoiser.

    steps: of the classical Runge-Kutta method, four denoiser calls each, evenly spaced in the
    logit of f. trace: of the Jacobian, exact (as many derivatives as dimensions) or Hutchinson's
    estimate with `probes` Rademacher or Gaussian vectors of each image's own. The probes are fixed
    along the path, so the estimate is unbiased.
    """
    if trace not in ("rademacher", "gaussian", "exact"):
        raise invalid("log_prob.trace", trace, "'rademacher', 'gaussian', 'exact'")
    if steps < 1 or probes < 1:
        raise invalid("log_prob.steps", (steps, probes), "steps >= 1 and probes >= 1")
    shape, size = x.shape, math.prod(x.shape[1:])

    def field(y: jax.Array, f: jax.Array) -> jax.Array:
        t = path.t_of_fraction(f)
        scale = path.alpha(t) + path.sigma(t)
        p, _ = denoiser(keys, scale * y.reshape(shape), t, denoiser.init(x))
        return (p.eps - p.x0).reshape(shape[0], size)

    if trace == "exact":
        vectors = jnp.broadcast_to(jnp.eye(size)[:, None], (size, shape[0], size))
        share = 1.0
    else:
        probe_keys = [fold(keys, PROBES + n) for n in range(probes)]
        gauss = jnp.stack([normal(k, (size,)) for k in probe_keys])
        vectors = gauss if trace == "gaussian" else jnp.where(gauss > 0, 1.0, -1.0)
        share = 1.0 / probes

    def speed(y: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, push = jax.linearize(lambda z: field(z, f), y)
        products = jax.lax.map(lambda v: (v * push(v)).sum(-1), vectors)
        return value, share * products.sum(0)

    # Near both ends the flow turns quickly: even steps in the logit of f resolve them.
    start = jnp.asarray(START / (1 + START), x.dtype)
    end = path.fraction(jnp.ones((), x.dtype))
    logits = jnp.linspace(jnp.log(start / (1 - start)), _logit_end(end), steps + 1)
    nodes = jax.nn.sigmoid(logits).at[-1].set(end)

    def step(state: tuple[jax.Array, jax.Array], ends: Any) -> tuple[Any, None]:
        y, total = state
        f, g = ends
        h = g - f
        k1, d1 = speed(y, f)
        k2, d2 = speed(y + h / 2 * k1, f + h / 2)
        k3, d3 = speed(y + h / 2 * k2, f + h / 2)
        k4, d4 = speed(y + h * k3, g)
        return (
            y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4),
            total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4),
        ), None

    # x is the data, alpha x / (alpha + sigma) where it starts.
    y = (1 - start) * x.reshape(shape[0], size)
    (y, total), _ = jax.lax.scan(step, (y, jnp.zeros(shape[0], x.dtype)), (nodes[:-1], nodes[1:]))
    prior = -0.5 * ((y / end) ** 2 + jnp.log(2 * jnp.pi * end**2)).sum(-1)
    return prior + total + size * jnp.log1p(-start)


def _logit_end(end: jax.Array) -> jax.Array:
    """The logit of the last f, kept where float32 can still tell 1 - f from 0."""
    rest = jnp.maximum(1 - end, 1e-4)
    return jnp.log((1 - rest) / rest)


def log_prob(
    network: Network,
    shape: tuple[int, ...],
    *,
    steps: int = 64,
    trace: Trace = "rademacher",
    probes: int = 1,
) -> Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array]:
    """fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B], compiled once."""

    @jax.jit
    def fn(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        denoiser = network.denoiser(params["net"], labels)
        return flow_log_prob(
            denoiser, network.path, x, keys, steps=steps, trace=trace, probes=probes
        )

    return fn


def bits_per_dim(nats: jax.Array, dimensions: int, levels: int = 256) -> jax.Array:
    """-nats / (dimensions ln 2) + log2(levels / 2): bits per dimension of images in [-1, 1].

    The constant is the change of variables from pixel values 0..levels-1 to [-1, 1] (a pixel is
    2 / levels wide). It is a bound on the discrete likelihood where x was dequantised uniformly:
    x + u, u in [0, 2 / levels) (Theis et al. 2016); on undithered pixels it is not one.
    """
    return -nats / (dimensions * math.log(2)) + math.log2(levels / 2)
