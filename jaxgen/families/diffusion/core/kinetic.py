"""Kinetic optimal Gaussian paths (Shaul et al. 2023): least energy of the marginal velocity.

For data of mean square 1 per dimension, the path a x0 + m eps costs, per dimension and time,
a'^2 + m'^2 - (1 - l(a / m)) (a' - m' a / m)^2. The data separation l(s) = E |E[x0 | s x0 + eps]|^2
/ E |x0|^2, between s^2 / (1 + s^2) and 1, is all that the data has to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path

Separation = Callable[[jax.Array], jax.Array]
"""l(s) of s = alpha / sigma >= 0."""


def separation(points: jax.Array, key: jax.Array, draws: int = 8) -> Separation:
    """l of the data set points [N, ...] from `draws` noises of each point, by the softmax's mean.

    A table over s = exp(-5) to exp(5), O(draws N^2) each; beyond it, its ends. Points are divided
    by their root mean square.
    """
    x = points.reshape(points.shape[0], -1).astype(jnp.float32)
    x = x / jnp.sqrt(jnp.mean(x**2))
    noise, logs = jax.random.normal(key, (draws, *x.shape)), jnp.linspace(-5.0, 5.0, 81)

    table = _table(x, noise, logs)
    return lambda s: jnp.interp(jnp.log(jnp.maximum(s, 1e-12)), logs, table)


@jax.jit
def _table(x: jax.Array, noise: jax.Array, logs: jax.Array) -> jax.Array:
    """l at s = exp(logs) [K] of points x [N, D] and noises [draws, N, D]."""

    def entry(log: jax.Array) -> jax.Array:
        s = jnp.exp(log)
        z = (s * x + noise).reshape(-1, x.shape[1])
        share = jax.nn.softmax(s * z @ x.T - 0.5 * s**2 * (x**2).sum(1))
        return jnp.mean((share @ x) ** 2)

    return jax.lax.map(entry, logs)


def energy(path: Path, separated: Separation, count: int = 4000) -> jax.Array:
    """The path's kinetic energy per dimension [], by the midpoint rule in t."""

    @jax.jit
    def mean(t: jax.Array) -> jax.Array:
        a, m, da, dm = (f(t) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
        saved = (1 - separated(a / m)) * (da - dm * a / m) ** 2
        return jnp.mean(da**2 + dm**2 - saved)

    return mean((jnp.arange(count) + 0.5) / count)


def kinetic_optimal(separated: Separation, count: int = 4001) -> Path:
    """The path of least energy between alpha = 1 and sigma = 1.

    With a = rho cos q and m = rho sin q the energy is rho'^2 + rho^2 g q'^2, g = (l - cos^2 q) /
    sin^2 q: the plane's in polar coordinates with the angle int sqrt(g) dq in the place of q. So
    the best path is a straight line there. l = 1 is the linear path; N(0, I) has g = 0, all circles
    are free, and g's floor makes it `trig`. count: entries of the table of angles.
    """
    if count < 3:
        raise invalid("path.count", count, "count >= 3")
    half = math.pi / 2
    table = jnp.linspace(0, half, count, dtype=jnp.float32)
    middle = (table[1:] + table[:-1]) / 2
    g = (separated(1 / jnp.tan(middle)) - jnp.cos(middle) ** 2) / jnp.sin(middle) ** 2
    steps = jnp.sqrt(jnp.clip(g, 1e-4, 1.0)) * jnp.diff(table)
    angles = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    whole = angles[-1]

    def polar(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, y = 1 - t + t * jnp.cos(whole), t * jnp.sin(whole)
        return jnp.sqrt(x * x + y * y), jnp.interp(jnp.arctan2(y, x), angles, table)

    def alpha(t: jax.Array) -> jax.Array:
        rho, q = polar(t)
        return rho * jnp.sin(half - q)

    def sigma(t: jax.Array) -> jax.Array:
        rho, q = polar(t)
        return rho * jnp.sin(q)

    def ratio_inverse(r: jax.Array) -> jax.Array:
        angle = jnp.interp(jnp.arctan(r), table, angles)
        return jnp.sin(angle) / (jnp.sin(angle) + jnp.sin(whole - angle))

    return Path(alpha=alpha, sigma=sigma, ratio_inverse=ratio_inverse)
