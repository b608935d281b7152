"""Learned uncertainty (Karras et al. 2024, EDM2): every noise level weighs the same in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.prediction import noise_condition
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term
from jaxgen.method import CONSTANTS
from jaxgen.nn.mp import MPFourier


class Uncertainty(nn.Module):
    """u, the log variance of the loss at each noise level (their appendix B.2).

    Random Fourier features of the noise number, then one linear layer that starts at 0.
    """

    features: int = 128

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """noise [B] -> u [B]."""
        h = MPFourier(self.features, name=CONSTANTS)(noise)
        zeros = nn.initializers.zeros
        return nn.Dense(1, use_bias=False, kernel_init=zeros, name="out")(h)[:, 0]


def uncertainty() -> Term:
    """The weighted error l becomes l / e^u + u (their eq. 21); u is in params["uncertainty"].

    What is added is the difference, and no other term is scaled.
    """
    spread = Uncertainty()

    def init(key: jax.Array, taps: Mapping[Any, Any]) -> PyTree:
        return spread.init(key, jnp.zeros(1))["params"]

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        kind, path, t = noised.network.kind, noised.network.path, noised.t
        # The time and no index of a noise level, of which these features would be too fast.
        noise = t if path.index is not None and kind != "edm" else noise_condition(kind, t, path)
        u: Any = spread.apply({"params": params}, noise)
        return noised.error * noised.weight * jnp.expm1(-u) + u

    return Term(name="uncertainty", of=of, init=init)
