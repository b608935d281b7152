"""TarFlow: its inverse, its determinant, and its denoising step against Tweedie's closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.invertible import SHAPE, errors
from jaxgen.families.flows.method import denoise
from jaxgen.nn.tarflow import TarFlow

PAPER = "Normalizing Flows are Capable Generative Models"
ENTRY = "jaxgen.nn.tarflow.TarFlow"
CLEAN, NOISE = 0.8, 0.3


class Gaussian:
    """The exact flow of N(0, CLEAN^2 + NOISE^2)."""

    std = (CLEAN**2 + NOISE**2) ** 0.5

    def apply(self, params: object, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z = x / std."""
        z = x.reshape(len(x), -1) / self.std
        return z, jnp.full(len(x), -z.shape[1] * np.log(self.std))


def checks() -> list[Check]:
    """The toy check of the catalogue, and what is lost without the determinant or the noise."""
    model = TarFlow(num_classes=3, shape=SHAPE, patch=2, width=8, flows=3, layers=1, heads=2)
    inverse, determinant, size = errors(model)
    x = jax.random.normal(jax.random.key(5), (64, *SHAPE))
    labels = jnp.zeros(64, jnp.int32)
    mean = x * CLEAN**2 / (CLEAN**2 + NOISE**2)
    results = denoise(Gaussian(), {}, x, labels, NOISE)
    wrong = denoise(Gaussian(), {}, x, labels, 0.5 * NOISE)
    return [
        below("inverse(forward(x)) - x", inverse, 1e-4),
        below("log-determinant - that of the Jacobian", determinant, 1e-4),
        control(below("the same without the sum of alpha", size, 1e-4)),
        below("denoised - Tweedie's mean", np.abs(results - mean).max(), 1e-5),
        control(below("the same with half the noise", np.abs(wrong - mean).max(), 1e-5)),
    ]
