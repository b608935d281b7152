"""Kinetic optimal paths: circles for a Gaussian, straight lines for far points, less in between."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_below, near
from jaxgen.families.diffusion.core import path
from jaxgen.families.diffusion.core.kinetic import energy, kinetic_optimal, separation
from jaxgen.testing import check_path

PAPER = "On Kinetic Optimal Probability Paths for Generative Models"
ENTRY = "jaxgen.families.diffusion.core.kinetic.kinetic_optimal"
SEEDS = 5


def checks() -> list[Check]:
    """The two known ends, then a data set whose best path is neither."""
    results = []

    def gaussian(s: jax.Array) -> jax.Array:
        return s**2 / (1 + s**2)

    best, t = kinetic_optimal(gaussian), jnp.linspace(0, 1, 101)
    square = best.alpha(t) ** 2 + best.sigma(t) ** 2
    results.append(below("|alpha^2 + sigma^2 - 1|, N(0, I)", jnp.abs(square - 1).max(), 1e-3))
    results.append(below("energy, N(0, I)", energy(best, gaussian), 1e-3))
    results.append(control(below("energy, N(0, I)", energy(path.linear(), gaussian), 1e-3)))
    # (1 - 2t)^2 / ((1 - t)^2 + t^2) has the mean 2 - pi / 2.
    results.append(near("energy of the linear path, N(0, I)", energy(path.linear(), gaussian),
                      2 - np.pi / 2, 1e-3))  # fmt: skip

    far = kinetic_optimal(jnp.ones_like)
    results.append(below("|sigma - t| where l = 1", jnp.abs(far.sigma(t) - t).max(), 1e-3))
    results.append(
        control(below("|sigma - t| where l = 1", jnp.abs(best.sigma(t) - t).max(), 1e-3))
    )

    # Few points in few dimensions: less energy than both, over data sets and noises.
    def energies(key: jax.Array) -> list[jax.Array]:
        data_key, other = jax.random.split(key)
        apart = separation(jax.random.normal(data_key, (24, 3)), other)
        return [energy(p, apart) for p in (kinetic_optimal(apart), path.linear(), path.trig())]

    # Compiling is all the time that this takes: half of it at this level.
    fast = {"xla_backend_optimization_level": 1}
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    least, linear, trig = jax.jit(jax.vmap(energies), compiler_options=fast)(keys)
    results.append(
        mean_below("energy over the linear path's, 24 points in 3-D", least / linear, 0.99)
    )
    results.append(mean_below("energy over trig's, 24 points in 3-D", least / trig, 0.99))
    data_key, other = jax.random.split(jax.random.key(0))
    check_path(kinetic_optimal(separation(jax.random.normal(data_key, (24, 3)), other)))
    return results
