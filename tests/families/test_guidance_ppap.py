"""Experts by noise level: which runs where, what distillation asks for, changes of low rank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.guidance.ppap import adapted, adapters, by_noise, log_prob, transfer

X = jnp.zeros((4, 2))


def constant(number):
    return lambda x, t: jnp.full((x.shape[0], 3), float(number))


def test_the_expert_of_a_time_runs_for_one_time_or_many():
    chosen = by_noise([constant(n) for n in range(3)], (0.3, 0.7))
    times = jnp.array([0.0, 0.29, 0.3, 0.7])
    np.testing.assert_array_equal(chosen(X, times)[:, 0], [0, 0, 1, 2])
    for t, n in zip(times, (0, 0, 1, 2), strict=True):
        assert (jax.jit(chosen)(X, t) == n).all()
    one = constant(0)
    assert by_noise([one], ()) is one


@pytest.mark.parametrize("edges", [(0.5,), (0.7, 0.3), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_edges_that_are_no_ranges_are_refused(edges):
    with pytest.raises(UsageError, match="ppap.edges: got .*2 rising times"):
        by_noise([constant(n) for n in range(3)], edges)


def test_distillation_is_the_divergence_by_hand_and_has_no_gradient_into_the_teacher():
    seen = []

    def expert(x, t):
        seen.append(t)
        return jnp.tile(jnp.log(jnp.array([0.2, 0.5, 0.3])), (4, 1))

    def loss(w):
        keys = jax.random.split(jax.random.key(0), 4)
        teacher = lambda x: w * jnp.tile(jnp.log(jnp.array([0.6, 0.3, 0.1])), (4, 1))
        return transfer(teacher, expert, X, keys, paths.linear(), 0.4, 0.6)

    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    assert float(loss(1.0)) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    assert float(jax.grad(loss)(1.0)) == 0
    times = np.asarray(seen[0])
    assert (times >= 0.4).all() and (times < 0.6).all() and len(set(times.tolist())) == 4


def test_changes_are_nothing_at_first_and_of_low_rank_later():
    params = {"w": jnp.ones((5, 6)), "b": jnp.ones(6)}
    start = adapters(params, 2, jax.random.key(0))
    for name, leaf in adapted(params, start).items():
        np.testing.assert_array_equal(leaf, params[name])
    later = jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(1), a.shape), start)
    moved = adapted(params, later)
    assert np.linalg.matrix_rank(np.asarray(moved["w"] - params["w"]), tol=1e-4) == 2
    assert jnp.abs(moved["b"] - params["b"]).min() > 0
    with pytest.raises(UsageError, match="ppap.rank"):
        adapters(params, 0, jax.random.key(0))


def test_log_prob_is_of_the_label():
    value = log_prob(
        lambda x, t: jnp.tile(jnp.log(jnp.array([0.2, 0.5, 0.3])), (2, 1)), jnp.array([1, 2])
    )
    np.testing.assert_allclose(jnp.exp(value(X[:2], jnp.float32(0))), [0.5, 0.3], rtol=1e-6)
