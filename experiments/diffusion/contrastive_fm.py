"""Contrastive flow matching: the repulsion scales the velocity away from the mean target."""

from __future__ import annotations

import jax
import numpy as np

from experiments.shared.check import Check, below, control, mean_near
from experiments.shared.linear_fit import best_line
from jaxgen.families.diffusion.terms.contrast import contrast

PAPER = "Contrastive Flow Matching"
ENTRY = "jaxgen.families.diffusion.terms.contrast.contrast"
MEAN, STD, TIME, WEIGHT = 0.7, 0.5, 0.7, 0.3


def checks() -> list[Check]:
    """The best line at one time: (E[u | x_t] - w E[u]) / (1 - w), u = eps - x0."""
    fit = jax.jit(_fit, static_argnums=1)
    plain, moved = (np.array([fit(s, w) for s in range(8)]) for w in (0.0, WEIGHT))
    slope = (TIME - (1 - TIME) * STD**2) / (((1 - TIME) * STD) ** 2 + TIME**2)
    intercept = -MEAN - slope * (1 - TIME) * MEAN
    results = []
    for column, name, old, shift in ((1, "slope", slope, 0.0), (0, "intercept", intercept, MEAN)):
        new = (old + WEIGHT * shift) / (1 - WEIGHT)
        check = f"{name} at weight {WEIGHT:g}"
        results.append(mean_near(check, moved[:, column], new, 0.03))
        results.append(control(mean_near(check, plain[:, column], new, 0.03)))
        results.append(mean_near(f"{name} at weight 0, flow matching", plain[:, column], old, 0.03))
    # The mean velocity is that of the data at any weight: the field is only stretched around it.
    middle = (1 - TIME) * MEAN
    at = moved[:, 0] + moved[:, 1] * middle
    results.append(mean_near("velocity at the mean of x_t", at, -MEAN, 0.03))
    stretch = (moved[:, 1] / plain[:, 1]).mean() * (1 - WEIGHT)
    results.append(below("mean stretch over 1 / (1 - weight), off by", abs(stretch - 1), 0.02))
    return results


def _fit(seed: int, weight: float) -> jax.Array:
    key = jax.random.key(seed)
    x0 = MEAN + STD * jax.random.normal(jax.random.fold_in(key, 7), (20_000, 1))
    return best_line(x0, TIME, key, terms=[contrast(weight)])
