"""Minibatch optimal transport: pairs without crossings, so that one step is enough."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from experiments.shared.check import Check, below, control, mean_below, mean_near
from experiments.shared.linear_fit import best_line
from jaxgen.families.diffusion.core.coupling import (
    INDEPENDENT,
    Coupling,
    assignment,
    nearest_pairs,
    optimal,
)

PAPER = "Multisample Flow Matching: Straightening Flows with Minibatch Couplings"
ENTRY = "jaxgen.families.diffusion.core.coupling.optimal"
MEAN, STD, SIZE, SEEDS = 0.7, 0.5, 512, 6


def checks() -> list[Check]:
    """The assignment against SciPy's, then the velocity of Gaussian data under either pairing."""
    results = []
    gaps, same = [], []
    for seed in range(SEEDS):
        a, b = (jax.random.normal(k, (96, 5)) for k in jax.random.split(jax.random.key(seed)))
        a = a**3 + 0.5
        cost = ((a[:, None] - b) ** 2).sum(-1)
        ours = np.asarray(cost)[np.arange(96), np.asarray(jax.jit(assignment)(cost))].sum()
        gaps.append(ours / np.asarray(cost)[linear_sum_assignment(np.asarray(cost))].sum() - 1)
        same.append(jnp.abs(jnp.sort(jax.jit(nearest_pairs)(a, b), 0) - jnp.sort(b, 0)).max())
    results.append(below("cost over SciPy's - 1, 96 pairs, worst seed", max(gaps), 1e-5))
    results.append(below("change of the noise's law by the pairing", max(same), 0.0))

    # The limit of many pairs is x0 = mean + std eps, where u = eps - x0 is a function of x_t; the
    # independent pairing's velocity is the conditional mean.
    for t, bound in ((0.7, 0.03), (1.0, 0.03)):
        straight = (1 - STD) / ((1 - t) * STD + t)
        mixed = (t - (1 - t) * STD**2) / (((1 - t) * STD) ** 2 + t**2)
        near, far = (_slopes(t, coupling) for coupling in (optimal(), INDEPENDENT))
        check = f"slope of the velocity at t={t:g}"
        results.append(mean_near(check, near, straight, bound))
        results.append(control(mean_near(check, far, straight, bound)))
        results.append(mean_near(check + ", independent pairs", far, mixed, 0.1))

    # One Euler step from noise: x0 = eps - u(eps), whose deviation is |1 - slope|.
    check = "deviation of one-step samples is off by"
    results.append(mean_below(check, np.abs(np.abs(1 - near) - STD), 0.06))
    results.append(control(mean_below(check, np.abs(np.abs(1 - far) - STD), 0.06)))
    return results


def _slopes(t: float, coupling: Coupling) -> np.ndarray:
    """Slope of the best line for each seed [SEEDS], one batch of SIZE pairs each."""

    @jax.jit
    def fit(key: jax.Array) -> jax.Array:
        x0 = MEAN + STD * jax.random.normal(jax.random.fold_in(key, 7), (SIZE, 1))
        return best_line(x0, t, key, coupling=coupling)[1]

    return np.array([fit(jax.random.key(s)) for s in range(SEEDS)])
