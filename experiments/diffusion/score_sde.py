"""Score SDEs: likelihood by the probability flow, and samplers of one reverse process."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids, path
from jaxgen.families.diffusion.core.likelihood import flow_log_prob
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.testing import ASYMMETRIC, mixture_denoiser, mixture_log_prob

PAPER = "Score-Based Generative Modeling through Stochastic Differential Equations"
ENTRY = "jaxgen.families.diffusion.core.likelihood.flow_log_prob"


def checks() -> list[Check]:
    """On an asymmetric mixture with its exact score, under the VP and VE SDEs."""
    means, stds, weights = ASYMMETRIC
    results = []
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 64)
        mode = jax.random.choice(jax.random.key(1), 3, (64,), p=jnp.asarray(weights))
        z = jax.random.normal(jax.random.key(2), (64, 2))
        x = jnp.asarray(means)[mode] + jnp.asarray(stds)[mode][:, None] * z
        # Ends that forget the data: the prior N(0, sigma(1)^2) is then exact to below the bound.
        for name, p in (("VP", path.vp_linear(0.1, 40.0)), ("VE", path.ve(0.01, 1e4))):
            denoiser = mixture_denoiser(p, means, stds, weights)
            value = flow_log_prob(denoiser, p, x, keys, steps=128, trace="exact")
            exact = mixture_log_prob(p, x, jnp.float64(0), means, stds, weights)
            gap = jnp.abs(value - exact).max()
            results.append(below(f"{name}: |ODE log-likelihood - closed form|, nats", gap, 1e-3))

    # The divergence is what makes it a density: without it, the prior's value alone is off.
    p = path.vp_linear()
    denoiser = mixture_denoiser(p, means, stds, weights)
    x = jnp.asarray(x, jnp.float32)
    grid = jnp.flip(grids.log_snr(64, p))[1:]
    end = integrate(solvers.heun(p), denoiser, x, grid, keys)
    alone = -0.5 * (end**2 + jnp.log(2 * jnp.pi)).sum(1)
    exact = mixture_log_prob(p, x, jnp.float32(0), means, stds, weights)
    off = jnp.abs(alone - exact).max()
    results.append(control(below("VP: the same without the divergence, nats", off, 1e-3)))

    mean = (weights[:, None] * means).sum(0)
    centred = means - mean
    spread = (weights[:, None, None] * centred[:, :, None] * centred[:, None, :]).sum(0)
    covariance = spread + jnp.eye(2) * (weights * stds**2).sum()
    for name, solver in (
        ("reverse SDE", solvers.euler_maruyama(p)),
        ("predictor-corrector", solvers.predictor_corrector(p)),
        ("ODE", solvers.adaptive(p, order=5)),
    ):
        keys = jax.random.split(jax.random.key(4), 40_000)
        times = jnp.array([1.0, 0.0]) if solver.times is None else grids.log_snr(250, p)
        run = jax.jit(lambda k, s=solver, g=times: integrate(s, denoiser, prior(p, k, (2,)), g, k))
        x = run(keys)
        results.append(below(f"{name}: mean off by", jnp.abs(x.mean(0) - mean).max(), 0.03))
        gap = jnp.abs(jnp.cov(x.T) - covariance).max()
        results.append(below(f"{name}: covariance off by", gap, 0.05))
    return results
