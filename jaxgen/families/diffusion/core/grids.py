"""Time grids for sampling: `grid(steps, path) -> times [steps + 1]`, falling from 1 to 0.

The first time is exactly 1 and the last exactly 0 for every grid, so a sampler always starts from
the prior and ends at the data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path


def uniform(steps: int, path: Path) -> jax.Array:
    """Equal steps in t."""
    return jnp.linspace(1.0, 0.0, steps + 1)


def shifted(steps: int, path: Path, *, factor: float = 3.0) -> jax.Array:
    """Equal steps, then t -> factor t / (1 + (factor - 1) t) (Esser et al. 2024, eq. 23).

    factor > 1 spends more steps at high noise: for large images and for strong guidance.
    """
    if factor <= 0:
        raise invalid("grid.factor", factor, "factor > 0")
    t = uniform(steps, path)
    return factor * t / (1 + (factor - 1) * t)


def karras(
    steps: int,
    path: Path,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> jax.Array:
    """sigma^(1/rho) equally spaced (Karras et al. 2022, eq. 5), then a last step to 0.

    sigma is sigma / alpha. sigma_min, sigma_max: None takes the path's own range.
    """
    low, high = _range(path, sigma_min, sigma_max)
    ramp = jnp.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    return _ends(path.t_of_sigma(ramp**rho))


def log_snr(
    steps: int, path: Path, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> jax.Array:
    """Equal steps in log-SNR (Lu et al. 2022, section 3.3), then a last step to 0."""
    low, high = _range(path, sigma_min, sigma_max)
    ramp = jnp.linspace(-2 * jnp.log(high), -2 * jnp.log(low), steps)
    return _ends(path.t_of_log_snr(ramp))


def _range(path: Path, low: float | None, high: float | None) -> tuple[float, float]:
    low = path.ratio_min if low is None else low
    high = path.ratio_max if high is None else high
    if not 0 < low < high:
        raise invalid("grid.sigma_min", (low, high), "0 < sigma_min < sigma_max")
    return low, high


def _ends(t: jax.Array) -> jax.Array:
    """From 1 exactly, and to 0 exactly by one more step."""
    return jnp.concatenate([t.at[0].set(1.0), jnp.zeros(1, t.dtype)])
