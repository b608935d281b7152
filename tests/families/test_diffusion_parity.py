"""The same samples as diffusers' schedulers with a fixed denoiser, where methods are the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.prediction import input_scale, noise_condition, to_prediction

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PATH = paths.trig()
START = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 4, 4)))
NODES = (np.arange(1000) + 1) / 1001
"""Our times of their 1000 discrete steps."""


def network(xp, x, level):
    """Any smooth function of x and the noise level, in NumPy, JAX or Torch alike."""
    return xp.tanh(1.3 * x + level) - 0.4 * x


def betas():
    bar = np.cos(np.pi / 2 * NODES) ** 2
    return 1 - bar / np.concatenate([[1.0], bar[:-1]])


def theirs(scheduler, steps):
    scheduler.set_timesteps(steps)
    x = torch.tensor(START, dtype=torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(network(torch, x, NODES[int(t)]), t, x).prev_sample
    return x.numpy(), [float(NODES[int(t)]) for t in scheduler.timesteps]


def ours(solver, times, kind="eps", path=PATH):
    def call(keys, x, t, memory):
        return to_prediction(kind, network(jnp, x, t), x, t, path), memory

    x = jnp.asarray(START, jnp.float64)
    return testing.run_solver(solver, Denoiser(call), x, jnp.array([*times, 0.0]))


@pytest.mark.parametrize("steps", [5, 20])
def test_ddim(steps):
    scheduler = diffusers.DDIMScheduler(trained_betas=betas(), clip_sample=False)
    expected, times = theirs(scheduler, steps)
    with jax.enable_x64(True):
        found = ours(solvers.ddim(PATH), times)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_dpmpp_2m(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas(), solver_order=2, final_sigmas_type="zero"
    )
    expected, times = theirs(scheduler, steps)
    with jax.enable_x64(True):
        found = ours(solvers.dpmpp_2m(PATH), times)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_unipc(steps):
    scheduler = diffusers.UniPCMultistepScheduler(
        trained_betas=betas(), solver_order=2, solver_type="bh2", final_sigmas_type="zero"
    )
    expected, times = theirs(scheduler, steps)
    with jax.enable_x64(True):
        found = ours(solvers.unipc(PATH, order=2), times)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


def test_edm_euler():
    """Karras' sigmas, EDM's preconditioning and Euler's method."""
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(12)
    path = paths.edm()
    x = torch.tensor(START * np.sqrt(80.0**2 + 1))
    start = x.numpy()
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(torch, scaled, float(t)), t, x).prev_sample

    def call(keys, x, t, memory):
        out = network(jnp, input_scale("edm", t, path) * x, noise_condition("edm", t, path))
        return to_prediction("edm", out, x, t, path), memory

    found = testing.run_solver(
        solvers.euler(path), Denoiser(call), jnp.asarray(start), grids.karras(12, path)
    )
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-3, atol=2e-3)
