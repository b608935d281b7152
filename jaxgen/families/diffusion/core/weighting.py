"""Loss weightings. A weighting is fn(path, t, gain) -> weight, of t's shape.

The weight multiplies the squared error of the network's *output*. Papers state theirs in several
spaces; `gain` (see `prediction.x0_gain`) turns a weight on x0's squared error into one on the
output's: multiply by gain^2. So every weighting means the same thing for every kind of prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import T_MIN, Path

Weighting = Callable[[Path, jax.Array, jax.Array], jax.Array]


def _snr(path: Path, t: jax.Array) -> jax.Array:
    return jnp.exp(path.log_snr(jnp.clip(t, T_MIN, 1 - T_MIN)))


def simple() -> Weighting:
    """1 on the network's own output: L_simple for eps (Ho et al. 2020), CFM for velocity."""
    return lambda path, t, gain: jnp.ones_like(gain)


def snr() -> Weighting:
    """SNR on x0's error: every kind is then trained as eps is (Salimans & Ho 2022, section 4)."""
    return lambda path, t, gain: _snr(path, t) * gain**2


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on x0's error (Hang et al. 2023, eq. 8)."""
    if gamma <= 0:
        raise invalid("weighting.gamma", gamma, "gamma > 0")
    return lambda path, t, gain: jnp.minimum(_snr(path, t), gamma) * gain**2


def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0's error, sigma over alpha (EDM, eq. 8).

    On EDM's own F it is 1 at every noise level.
    """
    if sigma_data <= 0:
        raise invalid("weighting.sigma_data", sigma_data, "sigma_data > 0")
    return lambda path, t, gain: (_snr(path, t) + sigma_data**-2) * gain**2


def sigmoid(bias: float = 0.0) -> Weighting:
    """sigmoid(bias - log SNR) on eps' error (Kingma & Gao 2023; Hoogeboom et al. 2024)."""

    def weight(path: Path, t: jax.Array, gain: jax.Array) -> jax.Array:
        log_snr = path.log_snr(jnp.clip(t, T_MIN, 1 - T_MIN))
        # SNR sigmoid(b - log SNR), written so that neither factor overflows.
        return jnp.exp(bias) * jax.nn.sigmoid(log_snr - bias) * gain**2

    return weight
