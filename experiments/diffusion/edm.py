"""EDM: preconditioning, Karras' steps and Heun's method, on Gaussian data with the optimal D."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids, path
from jaxgen.families.diffusion.core.prediction import input_scale, target
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.testing import gaussian_denoiser, gaussian_flow

PAPER = "Elucidating the Design Space of Diffusion-Based Generative Models"
ENTRY = "jaxgen.families.diffusion.solvers.heun"


def checks() -> list[Check]:
    """Order of Heun, unit variance of F's input and target, ends of the grid, churn's law."""
    p = path.edm()
    results = []

    # Error of the whole sampler against the closed-form flow: about 4 x per halving of the step.
    denoiser = gaussian_denoiser(p, 0.3, 0.5)
    keys = jax.random.split(jax.random.key(0), 256)
    x = prior(p, keys, (2,))
    exact = gaussian_flow(p, x, jnp.float32(1), jnp.float32(0), 0.3, 0.5)

    def error(solver: solvers.Solver, steps: int) -> float:
        out = integrate(solver, denoiser, x, grids.karras(steps, p), keys)
        return float(jnp.sqrt(jnp.mean((out - exact) ** 2)))

    errors = [error(solvers.heun(p), n) for n in (18, 36, 72)]
    first = error(solvers.euler(p), 18) / error(solvers.euler(p), 36)
    results.append(near("Heun error ratio, 18 to 36 steps", errors[0] / errors[1], 4.0, 1.0))
    results.append(control(near("Euler error ratio, 18 to 36 steps", first, 4.0, 1.0)))
    results.append(near("Heun error ratio, 36 to 72 steps", errors[1] / errors[2], 4.0, 1.0))

    # Appendix B.6: c_in x and F's target have unit variance at every noise level.
    x0 = 0.5 * jax.random.normal(jax.random.key(1), (400_000,))
    eps = jax.random.normal(jax.random.key(2), (400_000,))
    worst = 0.0
    for t in p.t_of_sigma(jnp.array([0.002, 0.05, 0.5, 5.0, 80.0])):
        for value in (input_scale("edm", t, p) * p.mix(x0, eps, t), target("edm", x0, eps, t, p)):
            worst = max(worst, abs(float(value.var()) - 1))
    results.append(below("|variance of c_in x and of F - 1|, worst level", worst, 0.02))

    grid = grids.karras(18, p)
    sigma = np.asarray(p.sigma(grid))
    results.append(near("first sigma", sigma[0], 80.0, 0.0))
    results.append(near("last sigma before 0", sigma[-2], 0.002, 1e-8))
    calls = solvers.heun(p).calls(denoiser, np.asarray(grid))
    results.append(near("network calls of 18 steps", calls, 35, 0))

    # Churn adds noise that the steps remove: the law of the samples stays.
    keys = jax.random.split(jax.random.key(3), 40_000)
    for noise, check in ((1.0, "with churn"), (1.5, "with half as much noise again")):
        churn = solvers.edm(p, 64, s_churn=20.0, s_min=0.01, s_max=50.0, s_noise=noise)
        out = integrate(churn, denoiser, prior(p, keys, (1,)), grids.karras(64, p), keys)
        deviation = near(f"deviation {check}", out.std(), 0.5, 0.02)
        results.append(near(f"mean {check}", out.mean(), 0.3, 0.02))
        results.append(deviation if noise == 1 else control(deviation))
    return results
