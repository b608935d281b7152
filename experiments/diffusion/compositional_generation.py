"""Composition: products and negations by annealed Langevin steps, mixtures exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_near
from experiments.shared.toys import (
    MEANS,
    SEEDS,
    STDS,
    WEIGHTS,
    of_all,
    of_class,
    points,
    samples,
)
from experiments.shared.toys import PATH as LINEAR
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.composition import mixture, product
from jaxgen.testing import gaussian_denoiser, mixture_denoiser, mixture_log_prob

PAPER = "Compositional Generative Modeling: A Single Model is Not All You Need"
ENTRY = "jaxgen.families.diffusion.guidance.composition.product"

# Variance exploding: alpha = 1 throughout, so the product is a density at every noise level.
PATH = paths.edm(0.01, 10.0)
FIRST = (np.array([[-1.2, 0.0], [1.2, 0.3]]), np.array([0.6, 0.8]), np.array([0.6, 0.4]))
COUNT, TIMES = 3000, (0.9, 0.5, 0.2)
SECOND = (np.array([[-0.8, 0.5], [1.5, -0.2]]), np.array([0.9, 0.5]), np.array([0.3, 0.7]))


def exact_product() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means [4, 2], deviations [4] and weights [4] of FIRST times SECOND: all pairs of modes."""
    means, stds, weights = [], [], []
    for m, s, a in zip(*FIRST, strict=True):
        for n, r, b in zip(*SECOND, strict=True):
            total = s**2 + r**2
            means.append((r**2 * m + s**2 * n) / total)
            stds.append(s * r / math.sqrt(total))
            weights.append(a * b * math.exp(-0.5 * ((m - n) ** 2).sum() / total) / total)
    share = np.array(weights)
    return np.array(means), np.array(stds), share / share.sum()


def right_half(means: np.ndarray, stds: np.ndarray, weights: np.ndarray) -> float:
    """P(x > 0) of a mixture in the plane."""
    ratios = means[:, 0] / stds / math.sqrt(2)
    return float(sum(w * 0.5 * (1 + math.erf(r)) for w, r in zip(weights, ratios, strict=True)))


def checks() -> list[Check]:
    """A product of mixtures, a Gaussian without another, and a mixture of three classes."""
    results = []
    annealed = solvers.predictor_corrector(PATH, snr=0.35, corrections=10)
    grid = grids.karras(50, PATH)
    cases = ((annealed, lambda check: check), (solvers.heun(PATH), control))

    means, stds, weights = exact_product()
    pair = product(mixture_denoiser(PATH, *FIRST), mixture_denoiser(PATH, *SECOND))
    mean = (weights[:, None] * means).sum(0)
    for solver, wrap in cases:
        out = samples(pair, solver=solver, path=PATH, count=COUNT, grid=grid)
        share, right = (out[..., 0] > 0).mean(1), right_half(means, stds, weights)
        results.append(wrap(mean_near("product: share of modes on the right", share, right, 0.05)))
        results.append(wrap(mean_near("product: mean of x", out[..., 0].mean(1), mean[0], 0.08)))

    # N(m, s^2) / N(n, r^2)^a has precision 1 / s^2 - a / r^2.
    (m, s), (n, r), a = (0.5, 0.6), (-0.3, 1.0), 0.4
    precision = 1 / s**2 - a / r**2
    mean, deviation = (m / s**2 - a * n / r**2) / precision, precision**-0.5
    pair = product(gaussian_denoiser(PATH, m, s), gaussian_denoiser(PATH, n, r), -a)
    for solver, wrap in cases:
        out = samples(pair, solver=solver, path=PATH, count=COUNT, grid=grid)[..., 0]
        if wrap is not control:
            results.append(mean_near("negation: mean of x", out.mean(1), mean, 0.05))
        results.append(wrap(mean_near("negation: deviation of x", out.std(1), deviation, 0.05)))

    # The mixture of the three classes is the mixture itself; without densities it is not.
    def density(label: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        component = (MEANS[[label]], STDS[[label]], np.ones(1))
        return lambda x, t: mixture_log_prob(LINEAR, x, t, *component)

    components, whole = [of_class(k) for k in range(3)], of_all()
    equal = [lambda x, t: jnp.zeros(len(x))] * 3
    known = [density(k) for k in range(3)]
    for densities, wrap in ((known, lambda check: check), (equal, control)):
        mixed = mixture(components, densities, list(WEIGHTS))
        change = jax.jit(functools.partial(_change, mixed, whole))
        gap = max(change(*points(seed), jnp.float32(t)) for t in TIMES for seed in range(SEEDS))
        results.append(wrap(below("mixture: largest change of x0", gap, 1e-4)))
    return results


def _change(
    first: Denoiser, second: Denoiser, keys: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """The largest difference of two denoisers' x0."""
    estimates = [d(keys, x, t, d.init(x))[0].x0 for d in (first, second)]
    return jnp.abs(estimates[0] - estimates[1]).max()
