"""Time grids for sampling: `grid(steps, path) -> times [steps + 1]`, falling from 1 to 0.

The first time is exactly 1 and the last exactly 0 for every grid, so a sampler always starts from
the prior and ends at the data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path


def uniform(steps: int, path: Path, *, last: float = 0.0) -> jax.Array:
    """Equal steps in t. last: where the last step, to 0, starts; 0: it is like the others.

    SiT's SDE sampler has last=.04 (Ma et al. 2024, app. E).
    """
    if not 0 <= last < 1:
        raise invalid("grid.last", last, "0 <= last < 1")
    if last == 0:
        return jnp.linspace(1.0, 0.0, steps + 1)
    return _ends(jnp.linspace(1.0, last, steps))


def shifted(steps: int, path: Path, *, factor: float = 3.0) -> jax.Array:
    """Equal steps, then t -> factor t / (1 + (factor - 1) t) (Esser et al. 2024, eq. 23).

    factor > 1 spends more steps at high noise: for large images and for strong guidance.
    """
    if factor <= 0:
        raise invalid("grid.factor", factor, "factor > 0")
    t = uniform(steps, path)
    return factor * t / (1 + (factor - 1) * t)


def respaced(steps: int, path: Path, *, levels: int | None = None) -> jax.Array:
    """`steps` of DDPM's noise levels, evenly spaced from the last to the first, then a step to 0.

    Level i at step n from the end is n (levels - 1) / (steps - 1), rounded (Nichol & Dhariwal 2021,
    sec. 4, as in ADM's and DiT's samplers). levels: None takes the path's, or 1000 where it has
    none.
    """
    count = levels or path.levels or 1000
    if path.levels not in (None, count):
        raise invalid("grid.levels", levels, f"{path.levels}, the path's, or None")
    if steps > count:
        raise invalid("sample.steps", steps, f"1 to {count}, the number of noise levels")
    strides = np.full(steps, (count - 1) / max(steps - 1, 1))
    strides[0] = 0 if steps > 1 else count - 1
    # Summed up one by one, as there: where a half is rounded to depends on it.
    index = np.round(np.cumsum(strides))[::-1].copy()
    return _ends(path.level_time(jnp.asarray(index), count))


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
