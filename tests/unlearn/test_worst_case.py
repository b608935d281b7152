"""The worst-case forget set: its projection, the gradient through unlearning, and what it picks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxgen.errors import UsageError
from jaxgen.unlearn.worst_case import capped_simplex, unrolled, worst_case

VALUES = arrays.arrays(np.float32, 7, elements=st.floats(-3, 3, width=32))


@settings(deadline=None)
@given(v=VALUES, total=st.integers(1, 6))
def test_the_projection_is_feasible_and_nearest(v, total):
    """Nearest: no feasible point lies on its far side, (v - w) . (u - w) <= 0 at every corner."""
    w = np.asarray(capped_simplex(jnp.asarray(v), total), np.float64)
    assert w.min() >= 0 and w.max() <= 1
    np.testing.assert_allclose(w.sum(), total, atol=1e-4)
    furthest = np.sort(v - w)[-total:].sum() - (v - w) @ w
    assert furthest <= 1e-3


def test_a_feasible_point_stays():
    w = jnp.array([0.25, 0.75, 1.0, 0.0])
    np.testing.assert_allclose(capped_simplex(w, 2), w, atol=1e-6)


def test_the_gradient_goes_through_unlearning():
    """One step from 0 on sum_i (1 - w_i) (p - x_i)^2 / 2: p = rate sum_i (1 - w_i) x_i."""
    x = jnp.array([1.0, -2.0, 4.0])
    objective = lambda p, w: ((1 - w) * (p - x) ** 2).sum() / 2
    one = unrolled(objective, optax.sgd(0.1), jnp.zeros(()), 1)
    w = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(one(w), 0.1 * ((1 - w) * x).sum(), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(one)(w), -0.1 * x, rtol=1e-6)
    signs = unrolled(objective, optax.sign_sgd(0.1), jnp.zeros(()), 1)
    np.testing.assert_array_equal(jax.grad(signs)(w), 0)


def test_what_the_rest_teaches_anyway_is_picked():
    """The mean of points stays near those at 0 whichever of them goes; the one at 5 is far."""
    x = jnp.array([0.0, 5.0, 0.1, -0.1, 0.0])
    objective = lambda p, w: ((1 - w) * (p - x) ** 2).sum() / 2
    unlearn = unrolled(objective, optax.sgd(0.3), x.mean(), 30)
    losses = lambda p: (p - x) ** 2
    w = worst_case(losses, unlearn, 5, 1, optimizer=optax.sgd(0.02), steps=100)
    np.testing.assert_allclose(w.sum(), 1, atol=1e-5)
    # The exact worst case, each left out in turn.
    left = [(np.delete(np.asarray(x), i).mean() - x[i]) ** 2 for i in range(5)]
    assert np.argmax(w) == np.argmin(left) and w[1] == 0


@pytest.mark.parametrize("size", [0, 5])
def test_a_size_that_leaves_nothing_to_choose_is_refused(size):
    with pytest.raises(UsageError, match="1 to 4"):
        worst_case(lambda p: p, lambda w: w, 5, size, optimizer=optax.sgd(1.0), steps=1)
