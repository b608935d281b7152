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
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.path import Path

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

    def entry(log: jax.Array) -> jax.Array:
        s = jnp.exp(log)
        z = (s * x + noise).reshape(-1, x.shape[1])
        share = jax.nn.softmax(s * z @ x.T - 0.5 * s**2 * (x**2).sum(1))
        return jnp.mean((share @ x) ** 2)

    table = jax.jit(lambda logs: jax.lax.map(entry, logs))(logs)
    return lambda s: jnp.interp(jnp.log(jnp.maximum(s, 1e-12)), logs, table)


def energy(path: Path, separated: Separation, count: int = 4000) -> jax.Array:
    """The path's kinetic energy per dimension [], by the midpoint rule in t."""
    t = (jnp.arange(count) + 0.5) / count
    a, m, da, dm = (f(t) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
    saved = (1 - separated(a / m)) * (da - dm * a / m) ** 2
    return jnp.mean(da**2 + dm**2 - saved)


def kinetic_optimal(separated: Separation, count: int = 4001) -> Path:
    """The path of least energy between alpha = 1 and sigma = 1.

    With a = rho cos q and m = rho sin q the energy is rho'^2 + rho^2 g q'^2, g = (l - cos^2 q) /
    sin^2 q: the plane's in polar coordinates with the angle int sqrt(g) dq in the place of q. So
    the best path is a straight line there. l = 1 is the linear path; N(0, I) has g = 0, all circles
    are free, and g's floor makes it `trig`. count: entries of the table of angles.
    """
    if count < 3:
        raise invalid("path.count", count, "count >= 3")
    half = np.float32(math.pi / 2)
    q = np.linspace(0, half, count, dtype=np.float32)
    middle = (q[1:] + q[:-1]) / 2
    s = jnp.asarray(1 / np.tan(middle))
    g = (np.asarray(separated(s)) - np.cos(middle) ** 2) / np.sin(middle) ** 2
    steps = np.sqrt(np.clip(g, 1e-4, 1.0)) * np.diff(q)
    angles = jnp.asarray(np.concatenate([[0.0], np.cumsum(steps)]), jnp.float32)
    table, whole = jnp.asarray(q), angles[-1]

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
