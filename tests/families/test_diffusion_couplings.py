"""Assignments against scipy's, and the two options of the loss that look at the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.closed_form import closed_form
from jaxgen.families.diffusion.core.coupling import assignment, nearest_pairs
from jaxgen.families.diffusion.core.kinetic import energy, kinetic_optimal
from jaxgen.families.diffusion.core.noise import pfgmpp
from jaxgen.families.diffusion.core.path import linear, trig
from jaxgen.families.diffusion.core.sampler import prior
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.testing import check_path
from jaxgen.training.ema import Averages


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_assignment_costs_what_scipys_does(size):
    solve = jax.jit(assignment)
    for seed in range(10):
        cost = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
        cost = cost + np.float32(5) * cost[:, :1]
        columns = np.asarray(solve(cost))
        assert sorted(columns) == list(range(size))
        rows, best = linear_sum_assignment(cost.astype(np.float64))
        total = cost.astype(np.float64)[np.arange(size), columns].sum()
        np.testing.assert_allclose(total, cost.astype(np.float64)[rows, best].sum(), atol=1e-4)


def test_assignment_survives_ties():
    columns = np.asarray(assignment(jnp.round(jax.random.uniform(jax.random.key(0), (32, 32)) * 2)))
    assert sorted(columns) == list(range(32))
    assert sorted(np.asarray(assignment(jnp.zeros((9, 9))))) == list(range(9))


def test_optimal_on_a_line_is_sorted():
    """In one dimension the optimal pairing is monotone."""
    x0 = jax.random.permutation(jax.random.key(0), jnp.linspace(-1, 3, 50)[:, None])
    eps = nearest_pairs(x0, jax.random.normal(jax.random.key(1), (50, 1)))
    order = np.argsort(x0[:, 0])
    assert (np.diff(np.asarray(eps)[order, 0]) > 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": "optimal"},
        {"terms": [{"name": "contrast", "weight": 0.05}]},
        {"noise": {"name": "pfgmpp", "extra_dims": 4.0}},
    ],
)
def test_the_options_train_and_change_the_update(options):
    plain, other = method(), method(**options)
    assert plain.separable and other.separable == ("noise" in options)
    assert (other.log_prob is None) == ("noise" in options)
    batch = {
        "image": jax.random.normal(jax.random.key(0), (8, 2)),
        "label": jnp.zeros(8, jnp.int32),
    }
    moved = []
    for m in (plain, other):
        state = jax.jit(m.init)(jax.random.key(1))
        state, metrics = jax.jit(m.update)(state, batch, jax.random.key(2))
        assert np.isfinite(metrics["loss"])
        moved.append(np.concatenate([np.ravel(a) for a in jax.tree.leaves(state.params)]))
    assert np.abs(moved[0] - moved[1]).max() > 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": "otpimal"},
        {"noise": {"name": "pfgmpp", "extra_dims": 0.0}},
        {"noise": {"name": "pfgmpp", "extra_dims": 4.0}, "learned_variance": True},
        {"terms": [{"name": "contrast", "weight": 1.0}]},
        {"terms": ["contrats"]},
        {"terms": ["uncertainty", "uncertainty"]},
    ],
)
def test_bad_options_of_the_method_are_named(options):
    with pytest.raises(UsageError, match="method\\."):
        method(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing": -1.0},
        {"draws": 3},
        {"neighbours": 0},
        {"others": 1},
        {"neighbours": 4, "others": 2},
    ],
)
def test_bad_options_of_the_closed_form_are_named(options):
    with pytest.raises(UsageError, match="allowed"):
        closed_form(linear(), jnp.zeros((5, 2)), **options)


def method(**options):
    model = MLP(num_classes=1, out_channels=2, width=8, depth=1, scan=False)
    return denoising(Spec((2,), 1), model, optax.sgd(0.1), Averages((100,)), **options)


def test_a_sampler_starts_from_the_kernel_of_its_extra_dimensions():
    """A network that starts at zero velocity leaves the prior as it is."""
    m = method(noise={"name": "pfgmpp", "extra_dims": 3.0})
    params = jax.jit(m.init)(jax.random.key(0)).params
    keys, labels = jax.random.split(jax.random.key(1), 16), jnp.zeros(16, jnp.int32)
    out = m.sampler(steps=1, solver="euler").fn(params, keys, labels)
    np.testing.assert_allclose(out, prior(linear(), keys, (2,), pfgmpp(3.0)), rtol=1e-5)
    assert np.abs(np.asarray(out - prior(linear(), keys, (2,)))).max() > 0.1


def test_a_kinetic_optimal_path_keeps_the_laws_of_paths():
    """Between the linear path (l = 1) and the circle (l = s^2 / (1 + s^2))."""

    def half_way(s):
        return 0.5 + 0.5 * s**2 / (1 + s**2)

    path = kinetic_optimal(half_way)
    check_path(path)
    # Here g = 1/2 everywhere, so the straight line spans an angle of pi / 2 sqrt(1/2).
    least = 2 - 2 * np.cos(np.pi / 2 * 0.5**0.5)
    np.testing.assert_allclose(energy(path, half_way), least, rtol=2e-3)
    for other in (linear(), trig()):
        assert energy(other, half_way) > 1.01 * least
    with pytest.raises(UsageError, match="path.count"):
        kinetic_optimal(jnp.ones_like, count=2)
