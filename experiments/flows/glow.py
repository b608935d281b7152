"""Glow: inverse, determinant, data-dependent actnorm, and a density that integrates to one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.invertible import SHAPE, errors, moved
from experiments.shared.quick import quick_jit
from jaxgen.families.flows.method import density
from jaxgen.nn.glow import Glow, squeeze

PAPER = "Glow: Generative Flow with Invertible 1x1 Convolutions"
ENTRY = "jaxgen.nn.glow.Glow"
COUNT, WIDE = 100_000, 1.5


def masses() -> dict[float, tuple[float, float]]:
    """power -> integral over 2x2 images of p with its log-determinant times it, and its error."""
    model = Glow(num_classes=3, shape=(2, 2, 1), scales=1, steps=2, hidden=8)
    x = WIDE * jax.random.normal(jax.random.key(3), (COUNT, 2, 2, 1))
    labels = jnp.ones(COUNT, jnp.int32)
    params = moved(model, x[:1], labels[:1])

    @jax.jit
    def logs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return density(model, params, x, labels), model.apply({"params": params}, x, labels)[1]

    log_p, log_det = (np.asarray(a, np.float64) for a in logs(x))
    log_q = (-0.5 * (x / WIDE) ** 2 - 0.5 * np.log(2 * np.pi * WIDE**2)).sum((1, 2, 3))
    ratios = {power: np.exp(log_p + (power - 1) * log_det - log_q) for power in (1.0, 0.0)}
    return {k: (float(r.mean()), float(r.std() / COUNT**0.5)) for k, r in ratios.items()}


def checks() -> list[Check]:
    """The toy check of the catalogue; integrals by draws from a wider Gaussian."""
    model = Glow(num_classes=3, shape=SHAPE, scales=2, steps=2, hidden=8)
    inverse, determinant, size = errors(model)
    first = Glow(num_classes=3, shape=SHAPE, scales=1, steps=1, hidden=8)
    x, labels = 3 + 2 * jax.random.normal(jax.random.key(4), (64, *SHAPE)), jnp.zeros(64, jnp.int32)

    @quick_jit
    def initialised(x: jax.Array) -> Any:
        params = first.init(jax.random.key(0), x, labels)["params"]
        return first.apply({"params": params}, x, labels, initialise=True, mutable=["params"])[1]

    new = initialised(x)
    norm = new["params"]["step0_0"]["norm"]
    y = (squeeze(x) + norm["shift"]) * jnp.exp(3 * norm["log_scale"])
    results = masses()
    (total, error), (wrong, spread) = results[1.0], results[0.0]
    return [
        below("inverse(forward(x)) - x", inverse, 1e-4),
        below("log-determinant - that of the Jacobian", determinant, 1e-4),
        control(below("the same without the log-determinant", size, 1e-4)),
        below("actnorm: means of the first batch", np.abs(y.mean((0, 1, 2))).max(), 1e-5),
        below("actnorm: deviations - 1", np.abs(y.std((0, 1, 2)) - 1).max(), 1e-4),
        below("integral of the density - 1, in standard errors", abs(total - 1) / error, 4),
        control(below("the same without the determinant", abs(wrong - 1) / spread, 4)),
    ]
