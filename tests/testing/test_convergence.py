"""Laws in closed form against a recursion by hand and against samples; a wrong step is seen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.method import fold, normal
from jaxgen.testing import gaussian_denoiser
from jaxgen.testing.convergence import HIGH, LOW, MEAN, STD, law, weak_order

PATH = linear()
GRID = jnp.linspace(HIGH, LOW, 9)


def test_the_law_of_ancestral_sampling_is_a_recursion():
    """x_s = c x_t + d E[x0 | x_t] + noise of DDPM's beta-tilde, moments by hand in float64."""
    times = np.linspace(HIGH, LOW, 9)
    mean, variance = (1 - HIGH) * MEAN, ((1 - HIGH) * STD) ** 2 + HIGH**2
    for t, s in zip(times, times[1:], strict=False):
        ratio = (1 - t) / (1 - s)
        fresh = t**2 - ratio**2 * s**2
        on_x, on_x0, noise = ratio * s**2 / t**2, (1 - s) * fresh / t**2, fresh * s**2 / t**2
        gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
        slope = on_x + on_x0 * gain
        mean = slope * mean + on_x0 * (MEAN - gain * (1 - t) * MEAN)
        variance = slope**2 * variance + noise
    with jax.enable_x64(True):
        for solver in (solvers.ddpm(PATH, variance="small"), solvers.ddim(PATH, eta=1.0)):
            found = law(solver, PATH, jnp.linspace(HIGH, LOW, 9))
            np.testing.assert_allclose(found, (mean, variance**0.5), rtol=1e-9)


def test_the_law_is_that_of_samples():
    """With noise in the history (2M), and two draws a step (the corrector)."""
    count = 40_000
    keys = jax.random.split(jax.random.key(0), count)
    z = jax.random.normal(jax.random.key(1), (count, 1))
    start = (1 - HIGH) * MEAN + z * ((1 - HIGH) ** 2 * STD**2 + HIGH**2) ** 0.5
    for solver in (solvers.dpmpp_sde_2m(PATH), solvers.predictor_corrector(PATH)):
        model = gaussian_denoiser(PATH, MEAN, STD)
        run = jax.jit(lambda x, s=solver, m=model: integrate(s, m, x, GRID, keys))
        x, (mean, std) = np.asarray(run(start), np.float64), law(solver, PATH, GRID)
        assert abs(x.mean() - mean) < 4 * std / count**0.5
        assert abs(x.std() / std - 1) < 4 / (2 * count) ** 0.5


def test_a_little_too_much_noise_loses_the_order():
    def build(path, steps):
        right = solvers.ddim(path, eta=1.0)

        def step(denoiser, x, t, s, carry, keys):
            x, carry = right.step(denoiser, x, t, s, carry, keys)
            extra = 0.5 * jnp.sqrt(t - s) * normal(fold(keys, 1), x.shape[1:], x.dtype)
            return x + extra, carry

        return dataclasses.replace(right, step=step)

    assert weak_order(build, (32, 64)) < 0.5
