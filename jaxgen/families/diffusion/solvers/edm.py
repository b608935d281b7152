"""EDM's stochastic sampler (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.solvers.base import Carry, Solver
from jaxgen.families.diffusion.solvers.ode import heun
from jaxgen.method import fold, normal
from jaxgen.method.streams import NOISE


def edm(
    path: Path,
    steps: int,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Solver:
    """Heun's method after a little fresh noise at each step ("churn"), for any path.

    s_churn: total amount, over `steps`; gamma = min(s_churn / steps, sqrt(2) - 1) where
    s_min <= sigma <= s_max. s_noise: standard deviation of the fresh noise. sigma is sigma / alpha.
    With s_churn = 0 it is `heun`. Noise above the path's own maximum is not added.
    """
    if s_churn < 0 or s_noise < 0:
        raise invalid("solver.s_churn", (s_churn, s_noise), "s_churn >= 0 and s_noise >= 0")
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    inner = heun(path)

    def raised(t: jax.Array) -> jax.Array:
        """The time whose sigma is (1 + gamma) times that of t, at most 1."""
        ratio = path.ratio(t)
        inside = (ratio >= s_min) & (ratio <= s_max)
        return jnp.where(inside, jnp.maximum(path.t_of_sigma(ratio * (1 + gamma)), t), t)

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        if gamma == 0:
            return inner.step(denoiser, x, t, s, carry, keys)
        high = raised(t)
        scale = path.alpha(high) / jnp.maximum(path.alpha(t), TINY)
        extra = jnp.maximum(path.sigma(high) ** 2 - (scale * path.sigma(t)) ** 2, 0.0)
        noise = s_noise * normal(fold(keys, NOISE), x.shape[1:], x.dtype)
        # At t=1 with alpha = 0 the scale is 0 / 0: there is nothing to add there.
        x = jnp.where(high > t, scale * x + jnp.sqrt(extra) * noise, x)
        return inner.step(denoiser, x, high, s, carry, keys)

    def times(number: int, t: np.ndarray, s: np.ndarray) -> list[float]:
        high = float(raised(jnp.asarray(t))) if gamma else float(t)
        return [high, float(s)] if s > 0 else [high]

    return Solver(step=step, order=2, stochastic=s_churn > 0, times=times)
