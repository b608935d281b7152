"""SINE: a fine-tuned model gives the layout at high noise, the base model the edit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from experiments.diffusion.spatext import exact, velocity
from experiments.shared.affine import Affine, euler_law
from experiments.shared.check import Check, below, control, mean_near, near
from experiments.shared.toys import PATH, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.multi import sine

PAPER = "SINE: SINgle Image Editing with Text-to-Image Diffusion Models"
ENTRY = "jaxgen.families.diffusion.guidance.multi.sine"

# The first coordinate is the layout, on which the source is precise; the second what is edited.
SOURCE = (np.array([1.3, -0.6]), np.array([0.15, 0.3]))
EDIT = (np.array([-0.2, 0.9]), np.array([0.8, 0.25]))
NULL = (np.array([0.1, 0.0]), np.array([1.0, 0.9]))
WEIGHT, SHARE, ABOVE, STEPS = 1.5, 0.7, 0.4, 32


def distribution(share: float, above: float, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of edited samples."""

    def mixed(t: float) -> Affine:
        weight = share if t >= above else 0.0
        good = velocity(SOURCE, t) * weight + velocity(EDIT, t) * (1 - weight)
        return velocity(NULL, t) * (1 - WEIGHT) + good * WEIGHT

    return euler_law(mixed, grid, 2)


def checks() -> list[Check]:
    """The law of edits, how near the layout stays, calls, and the identity."""
    results = []
    tuned, base, null = exact(SOURCE), exact(EDIT), exact(NULL)
    grid = np.asarray(grids.uniform(STEPS, PATH))

    def edited(share: float, above: float = ABOVE) -> Denoiser:
        return sine(base, null, tuned, weight=WEIGHT, share=share, above=above)

    plain = cfg(base, null, WEIGHT)
    mean, cov = distribution(SHARE, ABOVE, grid.astype(np.float64))
    cases = {
        "SINE": (edited(SHARE), lambda c: c),
        "without the fine-tuned model": (plain, control),
        "with it at all times": (edited(SHARE, 0.0), control),
    }
    for name, (denoiser, wrap) in cases.items():
        out = np.asarray(samples(denoiser, steps=STEPS))
        results.append(wrap(mean_near(f"{name}: mean layout", out[..., 0].mean(1), mean[0], 0.05)))
        if name != "with it at all times":
            std = cov[0, 0] ** 0.5
            results.append(wrap(mean_near(f"{name}: its deviation", out[..., 0].std(1), std, 0.03)))
        if name != "without the fine-tuned model":
            results.append(
                wrap(mean_near(f"{name}: mean edit", out[..., 1].mean(1), mean[1], 0.04))
            )
    same = samples(edited(0.0), steps=STEPS, count=100)
    gap = jnp.abs(same - samples(plain, steps=STEPS, count=100)).max()
    results.append(below("share 0 against guidance without it", gap, 0.0))
    high = int((grid[:-1] >= ABOVE).sum())
    calls = solvers.euler(PATH).calls(edited(SHARE), grid)
    results.append(near("network calls", calls, 2 * STEPS + high, 0))
    return results
