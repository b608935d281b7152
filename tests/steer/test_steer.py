"""Steering: laws of resampling, exact targets of particles and trees, budgets, identities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import UsageError
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import edm, linear
from jaxgen.families.diffusion.core.sampler import as_chain, integrate, prior
from jaxgen.method import fold, normal
from jaxgen.method.chain import Chain
from jaxgen.steer import feynman_kac, langevin, particles, paths, resample, search, svdd, tree
from jaxgen.testing import (
    ASYMMETRIC,
    check_compiles_once,
    check_sampler,
    gaussian_denoiser,
    mixture_denoiser,
)

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
    exact = jax.jit(plain())(KEYS)
    x, score, trace = jax.jit(search.best_of(chain(), first, count=1).traced)(KEYS)
    np.testing.assert_array_equal(x, exact)
    np.testing.assert_array_equal(trace, score[None])
    one = search.zero_order(chain(), first, rounds=0, neighbours=3)
    np.testing.assert_array_equal(jax.jit(one.fn)(KEYS), exact)


def test_best_of_is_the_best_of_what_it_drew():
    x, score, trace = jax.jit(search.best_of(chain(), first, count=5).traced)(KEYS)
    every = np.stack([first(plain()(search.branch(KEYS, n))) for n in range(5)])
    np.testing.assert_allclose(score, every.max(0), atol=1e-5)
    np.testing.assert_allclose(trace, np.maximum.accumulate(every), atol=1e-5)
    np.testing.assert_array_equal(first(x), score)


def test_zero_order_moves_the_noise_and_keeps_its_law():
    # The flow of one Gaussian is affine: neighbours of a pivot at 1 sd are normal about keep * it.
    flow = as_chain(solvers.euler(PATH), of_gaussian(), grids.uniform(4, PATH), (2,), PATH)
    keys = jax.random.split(jax.random.key(3), 4000)
    one, two = flow.start(keys), flow.start(search.branch(keys, 1))
    noise = flow.sample(flow.mix(one, two, 0.6))
    rows = 4 / noise.size**0.5
    np.testing.assert_allclose(noise.std(), 1.0, atol=rows)
    np.testing.assert_allclose((noise * flow.sample(one)).mean(), 0.8, atol=2 * rows)
    for radius, end in ((0.0, one), (1.0, two)):
        np.testing.assert_array_equal(flow.sample(flow.mix(one, two, radius)), flow.sample(end))


def test_searches_make_the_calls_that_they_say():
    denoiser, seen = counting(EXACT)
    for case in (
        search.best_of(chain(denoiser), first, count=3),
        search.zero_order(chain(denoiser), first, rounds=3, neighbours=2),
    ):
        seen.clear()
        jax.block_until_ready(jax.jit(case.fn)(KEYS))
        jax.effects_barrier()
        assert sum(seen) == case.calls * len(KEYS)
        check_compiles_once(jax.jit(case.fn), KEYS)


def test_bad_search_options_are_told():
    blank = dataclasses.replace(chain(), mix=None)
    for make in (
        lambda: search.best_of(chain(), first, count=0),
        lambda: search.zero_order(chain(), first, rounds=1, neighbours=0),
        lambda: search.zero_order(chain(), first, rounds=1, neighbours=1, radius=0.0),
        lambda: search.zero_order(blank, first, rounds=1, neighbours=1),
    ):
        with pytest.raises(UsageError, match="allowed"):
            make()


# Particles.


def test_powers_of_a_gaussian_have_their_law_and_normaliser():
    # q^2 of N(m, s^2 I): variance s^2 / 2, integral (4 pi s^2)^(-D / 2).
    way, mean, std = edm(0.03, 10.0), 0.4, 0.5
    steered = feynman_kac.annealed(
        gaussian_denoiser(way, mean, std), 2.0, grids.karras(200, way), (2,), noise=2.0
    )
    out = jax.jit(steered.fn)(jax.random.split(jax.random.key(0), 4000))
    x = np.asarray(out.x)
    found = np.asarray(out.mean(out.x))
    # Over ten keys, at 200 steps: mean off by 0.001 +- 0.012, variance 9% +- 3% short, ln of the
    # integral 0.07 +- 0.05 short. The bias and four deviations are allowed.
    np.testing.assert_allclose(found, mean, atol=0.06)
    variance = np.asarray(out.mean((out.x - mean) ** 2))
    np.testing.assert_allclose(variance, std**2 / 2, rtol=0.22)
    np.testing.assert_allclose(out.log_normaliser, -np.log(4 * np.pi * std**2), atol=0.28)
    assert bool(out.resampled.any()) and np.isfinite(x).all()
    assert ((out.ess >= 1 - 1e-3) & (out.ess <= 4000.1)).all()


def test_a_power_of_one_is_the_ancestral_sampler_and_never_resamples():
    way = edm(0.03, 10.0)
    denoiser, grid = mixture_denoiser(way, *ASYMMETRIC), grids.karras(12, way)
    out = feynman_kac.annealed(denoiser, 1.0, grid, (2,), threshold=1.0)(KEYS)
    x = integrate(solvers.ddim(way, 1.0), denoiser, prior(way, KEYS, (2,)), grid, KEYS)
    np.testing.assert_array_equal(out.log_weights, 0.0)
    assert not out.resampled.any() and (out.ess == len(KEYS)).all()
    np.testing.assert_allclose(out.log_normaliser, 0.0, atol=1e-6)
    np.testing.assert_allclose(out.x, x, atol=2e-4)


def test_particles_count_their_calls_and_lie_on_many_devices():
    denoiser, seen = counting(mixture_denoiser(edm(0.03, 10.0), *ASYMMETRIC))
    grid = grids.karras(6, denoiser.path)
    corrector = feynman_kac.product(denoiser, denoiser, grid, (2,))
    alone = jax.jit(corrector.fn)(KEYS)
    jax.effects_barrier()
    assert sum(seen) == corrector.calls * len(KEYS)
    assert corrector.calls == 2 * (len(grid) - 1)
    exact = mixture_denoiser(denoiser.path, *ASYMMETRIC)
    run = jax.jit(feynman_kac.product(exact, exact, grid, (2,)).fn)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    np.testing.assert_allclose(run(jax.device_put(KEYS, spread)).x, alone.x, atol=1e-4)


def test_smc_weighs_a_random_walk_without_bias():
    # Weights exp(x_n) along a walk of three standard normal steps: ln E = (1 + 4 + 9) / 2.
    def run(key):
        own = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(512))

        def step(x, number):
            x = x + 0.3 * normal(fold(own, number), ())
            return x, x

        return particles.smc(step, jnp.zeros(512), jnp.arange(3), own, 0.95).log_normaliser

    found = np.exp(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(6), 64)))
    exact = np.exp(0.09 * (1 + 4 + 9) / 2)
    assert abs(found.mean() - exact) <= 4 * found.std(ddof=1) / 8
    assert found.std() / 8 < 0.03 * exact


# Chains and soft value-based decoding.


def chain(denoiser: Denoiser = EXACT, steps: int = 4):
    return as_chain(solvers.ddim(PATH, 1.0), denoiser, grids.uniform(steps, PATH), (2,), PATH)


def test_a_chain_and_one_proposal_are_the_sampler_bit_for_bit():
    exact = jax.jit(plain())(KEYS)
    np.testing.assert_array_equal(jax.jit(chain().run)(KEYS), exact)
    one = svdd.svdd(chain(), first, proposals=1, alpha=0.5)
    np.testing.assert_array_equal(jax.jit(one.fn)(KEYS), exact)


def test_decoding_makes_its_calls_and_each_image_is_its_own():
    denoiser, seen = counting(EXACT)
    decoding = svdd.svdd(chain(denoiser), first, proposals=3, alpha=0.5)
    jax.block_until_ready(jax.jit(decoding.fn)(KEYS))
    jax.effects_barrier()
    assert sum(seen) == decoding.calls * len(KEYS) and decoding.calls == 3 * (4 + 3)
    run = jax.jit(svdd.svdd(chain(), first, proposals=3, alpha=0.5).fn)
    check_sampler(lambda params, keys, labels: run(keys), None, jnp.zeros(8, jnp.int32), atol=1e-6)


def test_decoding_a_discrete_chain_with_exact_values_has_the_tilted_law():
    # Three bits are drawn one after the other, P(1) = 0.3; the reward is their sum. Given exact
    # values the law is that of bits with odds 0.3 e / 0.7 each, as proposals grow.
    odds = 0.3 * np.e / 0.7
    bit = Chain(
        start=lambda keys: jnp.zeros((keys.shape[0], 3), jnp.int32),
        step=lambda keys, x, n: x.at[:, n].set(
            jax.vmap(lambda k: jax.random.bernoulli(k, 0.3))(fold(keys, n)).astype(jnp.int32)
        ),
        sample=lambda x: x,
        steps=3,
        step_calls=np.zeros(3),
        estimate=lambda keys, x, n: x,
        estimate_calls=np.zeros(3),
    )
    decoding = svdd.svdd(bit, lambda x: x.sum(1).astype(jnp.float32), proposals=64, alpha=1.0)
    keys = jax.random.split(jax.random.key(8), 4000)
    found = np.asarray(jax.jit(decoding.fn)(keys)).mean(0)
    np.testing.assert_allclose(found, odds / (1 + odds), atol=4 * 0.5 / 4000**0.5 + 0.01)


# Search over paths.

HOW = dict(width=2, branches=3, start=2, stride=1, back=1)


def test_one_path_is_the_sampler_bit_for_bit():
    one = paths.over_paths(chain(), first, width=1, branches=1, start=2, stride=1)
    x, score, _ = jax.jit(one.traced)(KEYS)
    np.testing.assert_array_equal(x, jax.jit(plain())(KEYS))
    np.testing.assert_array_equal(score, first(x))


def test_paths_make_their_calls_and_each_image_is_its_own():
    denoiser, seen = counting(EXACT)
    jax.block_until_ready(jax.jit(paths.over_paths(chain(denoiser), first, **HOW).fn)(KEYS))
    jax.effects_barrier()
    found = paths.over_paths(chain(), first, **HOW)
    # Two noises two steps; two rounds of six paths, two steps each, and an estimate between them.
    assert sum(seen) == found.calls * len(KEYS) and found.calls == 2 * 2 + 2 * 6 * 2 + 6
    run = jax.jit(found.traced)
    x, score, trace = run(KEYS)
    np.testing.assert_allclose(run(KEYS[5:])[0], x[5:], atol=1e-6)
    np.testing.assert_array_equal(trace[-1], score)
    np.testing.assert_allclose(first(x), score, atol=1e-6)


def test_a_state_noised_again_has_the_law_of_its_time():
    # Of N(0.3, 0.5^2) on the linear path at t = 1/2: back to t = 3/4.
    way, count = chain(of_gaussian()), 20_000
    keys = jax.random.split(jax.random.key(2), count)
    data = 0.3 + 0.5 * normal(fold(keys, 8), (2,))
    x = 0.5 * data + 0.5 * normal(fold(keys, 9), (2,))
    state = (x, ((), ()))
    found = np.asarray(way.sample(way.back(keys, state, jnp.asarray(2), jnp.asarray(1))))
    deviation = ((0.25 * 0.5) ** 2 + 0.75**2) ** 0.5
    size = found.size
    np.testing.assert_allclose(found.mean(), 0.25 * 0.3, atol=4 * deviation / size**0.5)
    np.testing.assert_allclose(found.std(), deviation, rtol=4 / (2 * size) ** 0.5)


def of_gaussian():
    return gaussian_denoiser(PATH, 0.3, 0.5)


# Trees.


def test_a_tree_of_one_rollout_is_the_sampler_bit_for_bit():
    exact = jax.jit(plain())(KEYS)
    for one in (
        tree.tree_sampling(chain(), first, budget=4, strength=2.0),
        tree.tree_search(chain(), first, budget=4),
    ):
        np.testing.assert_array_equal(jax.jit(one.fn)(KEYS), exact)
    # Its first leaf in a larger tree too, up to what another batch shape rounds.
    leaves = jax.jit(tree.tree_sampling(chain(), first, budget=9, strength=2.0).grow)(KEYS)
    np.testing.assert_allclose(leaves.x[:, 3], exact, atol=1e-5)
    np.testing.assert_allclose(leaves.reward[:, 3], first(exact), atol=1e-5)


def test_trees_count_their_calls_and_each_image_is_its_own():
    denoiser, seen = counting(EXACT)
    for make in (
        lambda c: tree.tree_sampling(c, first, budget=21, strength=2.0),
        lambda c: tree.tree_search(c, first, budget=21),
    ):
        seen.clear()
        jax.block_until_ready(jax.jit(make(chain(denoiser)).fn)(KEYS))
        jax.effects_barrier()
        # A batch of trees is one vmapped call a step.
        assert len(seen) == make(chain()).calls == 21
        run = jax.jit(make(chain()).fn)
        check_sampler(
            lambda params, keys, labels, run=run: run(keys), None, jnp.zeros(8), atol=1e-6
        )
        check_compiles_once(run, KEYS)


def bits(probability: float = 0.3) -> Chain:
    """Three bits drawn one after the other: every law of a tree over it can be enumerated."""
    return Chain(
        start=lambda keys: jnp.zeros((keys.shape[0], 3), jnp.int32),
        step=lambda keys, x, n: x.at[:, n].set(
            jax.vmap(lambda k: jax.random.bernoulli(k, probability))(fold(keys, n)).astype(
                jnp.int32
            )
        ),
        sample=lambda x: x,
        steps=3,
        step_calls=np.zeros(3),
        estimate=lambda keys, x, n: x,
        estimate_calls=np.zeros(3),
    )


def test_a_trees_values_are_those_of_its_leaves():
    """exp(value of the root) = sum over leaves of exp(reward) / product of children's numbers."""

    def reward(x):
        return x @ jnp.array([1.0, -0.5, 0.25])

    keys = jax.random.split(jax.random.key(5), 500)
    blind = jax.jit(tree.tree_sampling(bits(), reward, budget=40, strength=0.0).grow)(keys)
    steered = jax.jit(tree.tree_sampling(bits(), reward, budget=40, strength=2.0).grow)(keys)
    for leaves in (blind, steered):
        np.testing.assert_allclose(np.exp(leaves.log_weights).sum(1), 1, atol=1e-5)
    # Where values do not tell where to grow, they are unbiased: of the reward, and of exp(reward).
    value = np.asarray(blind.value)
    assert abs(value.mean() - 0.3 * 0.75) <= 4 * value.std() / 500**0.5
    there = np.isfinite(blind.log_weights)
    gain = np.where(there, np.exp(blind.log_weights + np.where(there, blind.reward, 0)), 0).sum(1)
    exact = np.prod(0.7 + 0.3 * np.exp([1.0, -0.5, 0.25]))
    assert abs(gain.mean() - exact) <= 4 * gain.std() / 500**0.5
    # And steered, the first bit has odds 0.3 e^2 / 0.7.
    weights = np.exp(steered.log_weights)
    share = (weights * np.asarray(steered.x)[..., 0]).sum(1).mean()
    odds = 0.3 * np.e**2 / 0.7
    assert abs(share - odds / (1 + odds)) < 0.08
    assert abs((there / there.sum(1, keepdims=True) * blind.x[..., 0]).sum(1).mean() - 0.3) < 0.05


def test_a_search_finds_the_best_leaf_of_its_tree():
    search_ = tree.tree_search(bits(), lambda x: x.sum(1).astype(jnp.float32), budget=300)
    leaves = jax.jit(search_.grow)(KEYS)
    np.testing.assert_array_equal(leaves.value, leaves.reward.max(1))
    np.testing.assert_array_equal(leaves.value, 3)
    np.testing.assert_array_equal(leaves.best(), 1)
    # A reward that is not a number never wins.
    bad = tree.tree_search(bits(), lambda x: jnp.where(x[:, 0] == 1, jnp.nan, 1.0), budget=30)
    np.testing.assert_array_equal(jax.jit(bad.grow)(KEYS).value, 1)


def test_bad_steering_options_are_told():
    grid = grids.karras(4, edm(0.03, 10.0))
    denoiser = mixture_denoiser(edm(0.03, 10.0), *ASYMMETRIC)
    for make in (
        lambda: feynman_kac.annealed(denoiser, 0.0, grid, (2,)),
        lambda: feynman_kac.annealed(denoiser, 2.0, grid, (2,), threshold=1.5),
        lambda: feynman_kac.annealed(denoiser, 2.0, grid, (2,), noise=-1.0),
        lambda: feynman_kac.annealed(EXACT, 2.0, grids.uniform(4, PATH), (2,)),
        lambda: svdd.svdd(chain(), first, proposals=0, alpha=1.0),
        lambda: svdd.svdd(chain(), first, proposals=2, alpha=0.0),
        lambda: paths.over_paths(chain(), first, **{**HOW, "width": 0}),
        lambda: paths.over_paths(chain(), first, **{**HOW, "stride": 3}),
        lambda: paths.over_paths(chain(), first, **{**HOW, "back": 3}),
        lambda: paths.over_paths(bits(), first, **{**HOW, "back": 1}),
        lambda: tree.tree_sampling(chain(), first, budget=3, strength=1.0),
        lambda: tree.tree_sampling(chain(), first, budget=8, strength=-1.0),
        lambda: tree.tree_search(chain(), first, budget=8, explore=-1.0),
        lambda: tree.tree_search(chain(), first, budget=8, power=0.0),
        lambda: langevin.plug_and_play(
            abs, abs, first, (2,), steps=5, prior=-1.0, condition=1.0, noise=1.0
        ),
    ):
        with pytest.raises(UsageError, match="allowed"):
            make()
