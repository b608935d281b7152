"""A diffusion that refines a guess: its coordinates, its keys, its two identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.methods.guess import beside, moved, noised, refined
from jaxgen.method import normal
from jaxgen.testing import check_sampler, gaussian_denoiser

PATH = paths.linear()
GRID = grids.uniform(4, PATH)
KEYS = jax.random.split(jax.random.key(0), 6)


def guesses(keys):
    return 2 + normal(keys, (3,))


def draw(refiner, reconstruct=guesses, keys=KEYS):
    run = jax.jit(lambda k: refined(solvers.euler(PATH), refiner, reconstruct, PATH, GRID, k))
    return run(keys)


def test_a_guess_that_nobody_reads_changes_no_bit():
    model = gaussian_denoiser(PATH, 0.3, 0.5)
    plain = jax.jit(lambda k: integrate(solvers.euler(PATH), model, prior(PATH, k, (3,)), GRID, k))(
        KEYS
    )
    np.testing.assert_array_equal(draw(lambda g: model)[0], plain)
    np.testing.assert_array_equal(draw(moved(lambda g: model), lambda k: 0 * guesses(k))[0], plain)


def test_the_refiner_sees_the_process_that_it_was_trained_on():
    # At t=1 on this path x_t = guess + eps: the first call's x less the noise is the guess.
    seen = []

    def refiner(guess):
        def call(keys, x, t, memory):
            seen.append(x - guess)
            return gaussian_denoiser(PATH)(keys, x - guess, t, memory)

        return Denoiser(call, path=PATH)

    guess = guesses(KEYS)
    y = prior(PATH, KEYS, (3,))
    moved(refiner)(guess)(KEYS, y, jnp.float32(1.0))
    np.testing.assert_allclose(seen[0], y, atol=1e-6)
    x0 = jax.random.normal(jax.random.key(2), (6, 3))
    for t in (0.0, 0.3, 1.0):
        x = noised(PATH, x0, guess, y, jnp.float32(t))
        np.testing.assert_allclose(x, (1 - t) * x0 + t * y + guess, atol=1e-6)
        x = noised(PATH, x0, guess, y, jnp.float32(t), moved=False)
        np.testing.assert_allclose(x, (1 - t) * x0 + t * y, atol=1e-6)


def test_formulation_1_concatenates_on_the_last_axis():
    def denoise(both, t):
        assert both.shape == (6, 6)
        return gaussian_denoiser(PATH, both[:, 3:], 0.0)(None, both[:, :3], t)[0]

    x, guess = draw(beside(denoise, PATH))
    # Data that is its guess: the sampler ends on it.
    np.testing.assert_allclose(x, guess, atol=1e-5)


def test_a_sample_is_its_keys_alone():
    refiner = moved(lambda g: Denoiser(
        lambda k, x, t, m: gaussian_denoiser(PATH, g, 0.3)(k, x - g, t, m), path=PATH
    ))  # fmt: skip
    check_sampler(lambda p, k, labels: draw(refiner, keys=k)[0], (), jnp.zeros(6, jnp.int32))


def test_the_guess_and_the_noise_are_of_different_keys():
    # Were they of one, a guess that is its own normal draw would be the prior's noise.
    _, guess = draw(beside(lambda both, t: gaussian_denoiser(PATH)(None, both[:, :3], t)[0], PATH))
    assert float(jnp.abs(guess - 2 - prior(PATH, KEYS, (3,))).min()) > 1e-3
