"""SpaText: two independent attributes with exact scores, guided one by one and together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.affine import Affine, eps_of, euler_law
from experiments.shared.check import Check, below, control, mean_near, near
from experiments.shared.toys import PATH, SEEDS, points, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.multi import spatext

PAPER = "SpaText: Spatio-Textual Representation for Controllable Image Generation"
ENTRY = "jaxgen.families.diffusion.guidance.multi.spatext"

# The first attribute is about one coordinate, the second about the other: nothing else is known.
NULL = (np.array([0.2, -0.1]), np.array([0.9, 0.7]))
FIRST = (np.array([1.1, -0.1]), np.array([0.4, 0.7]))
SECOND = (np.array([0.2, 0.8]), np.array([0.9, 0.3]))
BOTH = (np.array([1.1, 0.8]), np.array([0.4, 0.3]))
WEIGHTS, STEPS = (2.0, 0.5), 24


def exact(distribution: tuple[np.ndarray, np.ndarray]) -> Denoiser:
    """The denoiser of N(mean, diag(std^2))."""
    mean, std = distribution

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
        rest = (x - (1 - t) * mean) / ((1 - t) ** 2 * std**2 + t**2)
        return Prediction(mean + (1 - t) * std**2 * rest, t * rest), memory

    return Denoiser(call, path=PATH)


def velocity(distribution: tuple[np.ndarray, np.ndarray], t: float) -> Affine:
    """eps - x0 of that Gaussian."""
    mean, cov = distribution[0], np.diag(distribution[1] ** 2)
    eps = eps_of(mean, cov, t)
    gain = (1 - t) * cov @ eps.matrix / t
    return eps + Affine(gain, mean - (1 - t) * gain @ mean) * -1


def mixed(t: float, weights: tuple[float, float]) -> Affine:
    """The velocity of guidance with these weights."""
    components = (NULL, 1 - sum(weights)), (FIRST, weights[0]), (SECOND, weights[1])
    results = Affine(np.zeros((2, 2)), np.zeros(2))
    for distribution, share in components:
        results = results + velocity(distribution, t) * share
    return results


def checks() -> list[Check]:
    """The joint condition at weights 1, the quick form at equal ones, and laws at others."""
    results = []
    null, conds, both = exact(NULL), [exact(FIRST), exact(SECOND)], exact(BOTH)

    def gap(first: Denoiser, second: Denoiser) -> float:
        estimates = []
        for denoiser in (first, second):
            for seed in range(SEEDS):
                keys, x = points(seed)
                estimates.append(denoiser(keys, x, jnp.float32(0.5), denoiser.init(x))[0].x0)
        half = len(estimates) // 2
        return float(jnp.abs(jnp.stack(estimates[:half]) - jnp.stack(estimates[half:])).max())

    check = "change of x0 against the joint condition"
    results.append(below(f"{check}, weights 1", gap(spatext(null, conds), both), 1e-5))
    half = gap(spatext(null, conds, weights=(1.0, 0.0)), both)
    results.append(control(below(f"{check}, one attribute left out", half, 1e-5)))
    check = "change of x0 against the quick form"
    quick = cfg(both, null, 2.0)
    same = gap(spatext(null, conds, weights=2.0), quick)
    results.append(below(f"{check}, both weights 2", same, 1e-5))
    other = gap(spatext(null, conds, weights=WEIGHTS), quick)
    results.append(control(below(f"{check}, weights {WEIGHTS}", other, 1e-5)))
    grid = np.asarray(grids.uniform(STEPS, PATH))
    for name, denoiser, each in (("one by one", spatext(null, conds), 3), ("quick", quick, 2)):
        calls = solvers.euler(PATH).calls(denoiser, grid)
        results.append(near(f"network calls, {name}", calls, each * STEPS, 0))

    mean, cov = euler_law(lambda t: mixed(t, WEIGHTS), grid.astype(np.float64), 2)
    cases = ((WEIGHTS, lambda c: c), (2.0, control))
    for weights, wrap in cases:
        out = np.asarray(samples(spatext(null, conds, weights=weights), steps=STEPS))
        for axis in (0, 1):
            if weights != WEIGHTS and axis == 0:
                continue
            name = f"weights {weights}, attribute {axis + 1}"
            std = cov[axis, axis] ** 0.5
            results.append(
                wrap(mean_near(f"{name}: mean", out[..., axis].mean(1), mean[axis], 0.05))
            )
            results.append(wrap(mean_near(f"{name}: deviation", out[..., axis].std(1), std, 0.03)))
    return results
