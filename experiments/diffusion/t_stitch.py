"""T-Stitch: a blurred model for the first steps costs a tenth and leaves samples as they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_near, near
from experiments.shared.toys import MEANS, PATH, STDS, WEIGHTS, of_all, posterior, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.stitch import stitch
from jaxgen.testing import mixture_denoiser

PAPER = "T-Stitch: Accelerating Sampling in Pre-Trained Diffusion Models with Trajectory Stitching"
ENTRY = "jaxgen.families.diffusion.guidance.stitch.stitch"
STEPS = 40
GRID = grids.uniform(STEPS, PATH)
BLUR, PRICE = 0.6, 0.1


def small() -> Denoiser:
    """Knows where the classes are, not how sharp: right at high noise only. A call costs 0.1."""
    exact = mixture_denoiser(PATH, MEANS, np.sqrt(STDS**2 + BLUR**2), WEIGHTS)
    return dataclasses.replace(exact, calls=lambda t: PRICE)


def checks() -> list[Check]:
    """Both ends, the calls, then statistics of samples with small models first, last and alone."""
    results = []
    large, cheap = of_all(), small()

    def drawn(*models: tuple[Denoiser, float]) -> jax.Array:
        return samples(stitch(models, GRID), grid=GRID)

    alone, tiny = samples(large, grid=GRID), samples(cheap, grid=GRID)
    check = "samples that differ from the large model's"
    results.append(below(check, (drawn((cheap, 0.0), (large, 1.0)) != alone).sum(), 0))
    first = drawn((cheap, 0.4), (large, 0.6))
    results.append(control(below(check, (first != alone).sum(), 0)))
    check = "samples that differ from the small model's"
    results.append(below(check, (drawn((cheap, 1.0), (large, 0.0)) != tiny).sum(), 0))

    # Euler calls once a step, Heun also at the end of each but the last.
    mixed, grid = stitch([(cheap, 0.4), (large, 0.6)], GRID), np.asarray(GRID)
    for name, solver, early, late in (
        ("Euler", solvers.euler(PATH), 16, 24),
        ("Heun", solvers.heun(PATH), 31, 48),
    ):
        calls = solver.calls(mixed, grid)
        results.append(near(f"cost, {name}", calls, PRICE * early + late, 1e-9))

    for name, x in (("", first), ("small", tiny), ("last", drawn((large, 0.6), (cheap, 0.4)))):
        spread, share = _statistics(x)
        check = mean_near("deviation within the sharpest class", spread, STDS[2], 0.02)
        results.append(control(check) if name else check)
        if not name:
            results.append(mean_near("share of the first class", share, WEIGHTS[0], 0.03))
    return results


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(deviation around the mean of class 2 per coordinate, share of class 0), [seeds] each."""
    share = posterior(x)
    square = ((x - MEANS[2]) ** 2).mean(-1)
    deviation = jnp.sqrt((share[..., 2] * square).sum(1) / share[..., 2].sum(1))
    return deviation, share[..., 0].mean(1)
