"""Steering: laws of resampling, exact targets of particles and trees, budgets, identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion import grids, solvers
from jaxgen.families.diffusion.denoiser import Denoiser
from jaxgen.families.diffusion.path import linear
from jaxgen.families.diffusion.sampler import integrate, prior
from jaxgen.steer import resample, search
from jaxgen.testing import ASYMMETRIC, check_compiles_once, mixture_denoiser

PATH = linear()
EXACT = mixture_denoiser(PATH, *ASYMMETRIC)
KEYS = jax.random.split(jax.random.key(3), 8)


def counting(denoiser: Denoiser) -> tuple[Denoiser, list[int]]:
    """The denoiser, and a list to which each run of it adds its batch size."""
    seen: list[int] = []

    def call(keys, x, t, memory):
        jax.debug.callback(lambda n: seen.append(int(n)), x.shape[0])
        return denoiser(keys, x, t, memory)

    return Denoiser(call, path=denoiser.path), seen


def plain(denoiser: Denoiser = EXACT, steps: int = 4):
    """An ancestral sampler keys -> x in the plane."""
    solver, grid = solvers.ddim(PATH, 1.0), grids.uniform(steps, PATH)
    return lambda keys: integrate(solver, denoiser, prior(PATH, keys, (2,)), grid, keys)


# Resampling.


def test_systematic_counts_are_within_one_of_k_w_and_unbiased():
    log_weights = jnp.array([0.3, -jnp.inf, -1.0, 2.0, 0.0, -6.0, 1.1, -jnp.inf], jnp.float32)
    weights = np.exp(np.float64(log_weights))
    expected = 8 * weights / weights.sum()
    draw = jax.jit(jax.vmap(lambda k: resample.systematic(k, log_weights)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    counts = (found[:, :, None] == np.arange(8)).sum(1)
    assert (counts >= np.floor(expected - 1e-4)).all()
    assert (counts <= np.ceil(expected - 1e-4)).all()
    # A count is floor or ceil, so its deviation is at most 1/2: four standard errors.
    np.testing.assert_allclose(counts.mean(0), expected, atol=4 * 0.5 / 4000**0.5)
    assert (np.diff(found, axis=1) >= 0).all()


def test_permuted_particles_keep_their_counts_on_average():
    log_weights = jnp.linspace(-2, 1, 6)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    keys = jax.random.split(jax.random.key(1), 4000)
    means = []
    for values in (log_weights, log_weights[order]):
        found = np.asarray(jax.vmap(lambda k, v=values: resample.systematic(k, v))(keys))
        means.append((found[:, :, None] == np.arange(6)).sum(1).mean(0))
    np.testing.assert_allclose(means[0][order], means[1], atol=6 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("count", [1, 7, 1000, 100_000])
def test_every_index_exists_and_weight_zero_is_never_kept(count):
    alive = jnp.arange(count) < max(1, count // 3)
    log_weights = jnp.where(alive, 0.1 * jax.random.normal(jax.random.key(2), (count,)), -jnp.inf)
    for seed in range(5):
        found = resample.systematic(jax.random.key(seed), log_weights)
        assert found.shape == (count,) and bool(alive[found].all())


def test_effective_size_and_log_mean_exp():
    assert resample.effective_size(jnp.full(1000, -1e30)) == 1000
    assert resample.effective_size(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 1
    values = np.array([700.0, 699.0, 690.0])
    w = np.exp(values - 700)
    np.testing.assert_allclose(
        resample.effective_size(jnp.asarray(values)), w.sum() ** 2 / (w**2).sum(), rtol=1e-5
    )
    found = resample.log_mean_exp(jnp.asarray(values))
    np.testing.assert_allclose(found, 700 + np.log(w.mean()), rtol=1e-6)
    np.testing.assert_allclose(resample.normalised(jnp.full(4, -jnp.inf)), 0.25)


# Search.


def first(x):
    return x[:, 0]


def test_searches_of_one_sample_are_the_sampler_bit_for_bit():
    sample = jax.jit(plain())
    x, score, trace = jax.jit(search.best_of(plain(), first, 1).fn)(KEYS)
    np.testing.assert_array_equal(x, sample(KEYS))
    np.testing.assert_array_equal(trace, score[None])
    one = search.zero_order(lambda k, n: n * 2, first, (2,), rounds=0, neighbours=3)
    np.testing.assert_array_equal(one(KEYS)[0], 2 * prior(PATH, KEYS, (2,)))


def test_best_of_is_the_best_of_what_it_drew():
    x, score, trace = jax.jit(search.best_of(plain(), first, 5).fn)(KEYS)
    every = np.stack([first(plain()(search.branch(KEYS, n))) for n in range(5)])
    np.testing.assert_allclose(score, every.max(0), atol=1e-5)
    np.testing.assert_allclose(trace, np.maximum.accumulate(every), atol=1e-5)
    np.testing.assert_array_equal(first(x), score)


def test_searches_make_the_calls_that_they_say():
    denoiser, seen = counting(EXACT)
    cases = [search.best_of(plain(denoiser), first, 3, calls=4)]
    solver, grid = solvers.ddim(PATH, 1.0), grids.uniform(4, PATH)

    def generate(keys, noise):
        return integrate(solver, denoiser, noise, grid, keys)

    cases.append(search.zero_order(generate, first, (2,), rounds=3, neighbours=2, calls=4))
    for case in cases:
        seen.clear()
        jax.block_until_ready(jax.jit(case.fn)(KEYS))
        jax.effects_barrier()
        assert sum(seen) == case.calls * len(KEYS)
        check_compiles_once(jax.jit(case.fn), KEYS)


def test_bad_search_options_are_told():
    for make in (
        lambda: search.best_of(plain(), first, 0),
        lambda: search.zero_order(plain(), first, (2,), rounds=1, neighbours=0),
        lambda: search.zero_order(plain(), first, (2,), rounds=1, neighbours=1, radius=0.0),
    ):
        with pytest.raises(UsageError, match="allowed"):
            make()
