"""Steering masked models: the chain is the sampler, and steered laws are enumerated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.families.discrete.sampler import as_chain, build_sampler, build_steps
from jaxgen.steer.particles import smc
from jaxgen.steer.search import best_of
from jaxgen.steer.svdd import svdd
from tests.discrete_kit import exact_core

STATES = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1]])
PULL = np.array([1.2, -0.7, 0.4])
ALPHA, COUNT = 0.8, 2000
NET = {"net": {}}
OPTIONS = dict(
    schedule=exact_core(STATES).schedule, temperature=1.0, final_temperature=None,
    choice_temperature=0.0, guidance=1.0, guidance_schedule="constant", guided=False,
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), COUNT)


def steps(solver="random", count=3, noise="mask"):
    return build_steps(exact_core(STATES, noise=noise), solver=solver, steps=count, **OPTIONS)


def reward(x):
    return x.reshape(len(x), -1) @ jnp.asarray(PULL, jnp.float32)


def value(state, number):
    """ALPHA ln E[exp(reward / ALPHA) | what is seen]: the soft value, by enumeration."""
    x, _ = state
    agree = ((x[:, None] == STATES) | (x[:, None] == 2)).all(-1)
    each = jnp.where(agree, jnp.asarray(STATES @ PULL / ALPHA, jnp.float32), -jnp.inf)
    return ALPHA * (jax.nn.logsumexp(each, 1) - jnp.log(agree.sum(1)))


def shares(x, weights=None):
    """The weighted share of samples at each of STATES; nothing is anywhere else."""
    x = np.asarray(x).reshape(len(x), -1)
    weights = np.full(len(x), 1 / len(x)) if weights is None else np.asarray(weights)
    found = (x[:, None] == STATES).all(-1)
    assert found.any(1).all()
    return weights @ found


def tilted():
    share = np.exp(STATES @ PULL / ALPHA)
    return share / share.sum()


@pytest.mark.parametrize(
    ("solver", "noise"), [("random", "mask"), ("confidence", "mask"), ("ancestral", "uniform")]
)
def test_the_chain_is_the_sampler_bit_for_bit(solver, noise):
    core = exact_core(STATES, noise=noise)
    sampler = build_sampler(core, solver=solver, steps=3, **OPTIONS)
    chain = as_chain(steps(solver, noise=noise), NET, 0)
    labels = jnp.zeros(64, jnp.int32)
    found = jax.jit(chain.run)(KEYS[:64])
    np.testing.assert_array_equal(found, jax.jit(sampler.fn)(NET, KEYS[:64], labels))
    assert chain.step_calls.sum() == sampler.calls


def test_an_estimate_keeps_what_is_seen_and_is_the_sample_at_the_end():
    chain = as_chain(steps(), NET, 0)
    step, estimate = jax.jit(chain.step), jax.jit(chain.estimate)
    state = chain.start(KEYS[:64])
    for number in range(3):
        state = step(KEYS[:64], state, number)
        found = np.asarray(estimate(KEYS[:64], state, number + 1))
        seen = np.asarray(state[0])
        np.testing.assert_array_equal(found.reshape(64, 3)[seen < 2], seen[seen < 2])
        assert (seen < 2).sum() == 64 * (number + 1) and found.max() < 2
    np.testing.assert_array_equal(found, chain.sample(state))


def test_best_of_n_has_the_law_of_the_maximum():
    chain = as_chain(steps(), NET, 0)
    x, _, _ = jax.jit(best_of(chain, reward, count=3).traced)(KEYS)
    order = np.argsort(STATES @ PULL)
    exact = np.empty(5)
    exact[order] = np.diff((np.arange(6) / 5) ** 3)
    np.testing.assert_allclose(shares(x), exact, atol=4 * 0.5 / COUNT**0.5)


def test_svdd_and_smc_sample_the_tilted_law():
    chain, exact = as_chain(steps(), NET, 0), tilted()
    error = 4 * 0.5 / COUNT**0.5
    steered = svdd(chain, reward, proposals=24, alpha=ALPHA, value=value)
    # Exact for many proposals; of 24 the bias is below the samples' own error.
    np.testing.assert_allclose(shares(jax.jit(steered.fn)(KEYS)), exact, atol=error)

    def step(state, number):
        before = value(state, number)
        state = chain.step(KEYS, state, number)
        return state, (value(state, number + 1) - before) / ALPHA

    found = jax.jit(lambda: smc(step, chain.start(KEYS), jnp.arange(3), KEYS))()
    share = shares(chain.sample(found.x), jax.nn.softmax(found.log_weights))
    np.testing.assert_allclose(share, exact, atol=2 * error)
    # Weights are relative to the start's value, which is exact: their normaliser is 1.
    np.testing.assert_allclose(found.log_normaliser, 0, atol=error)
    # Without steering the law is the data's, which is far from the target.
    plain = shares(jax.jit(chain.run)(KEYS))
    np.testing.assert_allclose(plain, 0.2, atol=error)
    assert np.abs(plain - exact).max() > 4 * error


def test_svdd_by_estimates_goes_up_and_pays_for_them():
    chain = as_chain(steps(), NET, 0)
    steered = svdd(chain, reward, proposals=8, alpha=ALPHA)
    assert steered.calls == 8 * (3 + 2)
    found = np.asarray(reward(jax.jit(steered.fn)(KEYS)))
    assert found.mean() > (STATES @ PULL).mean() + 4 * found.std() / COUNT**0.5
