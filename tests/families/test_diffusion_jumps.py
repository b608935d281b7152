"""MeanFlow and shortcut models: exact mean velocities are their fixed points, and they run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import mean_flow, shortcut
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.methods.jumps import mean_flow_target, shortcut_target
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

PATH, MEAN, STD = linear(), 0.7, 0.5


def exact(z, t, h):
    """(z_t - z_{t-h}) / h of N(MEAN, STD^2)."""
    t, h = t[:, None], h[:, None]
    return (z - testing.gaussian_flow(PATH, z, t, t - h, MEAN, STD)) / h


def points():
    z = jax.random.normal(jax.random.key(0), (64, 1))
    t = jax.random.uniform(jax.random.key(1), (64,), minval=0.3, maxval=0.95)
    return z, t, t * jax.random.uniform(jax.random.key(2), (64,), minval=0.2, maxval=0.9)


def test_the_exact_mean_velocity_is_its_own_mean_flow_target():
    z, t, h = points()
    v = exact(z, t, jnp.full_like(t, 1e-3))  # the velocity itself, to first order in 1e-3
    u, wanted = mean_flow_target(exact, z, v, t, h)
    np.testing.assert_allclose(wanted, u, atol=0.01)
    # The slope at work: without it the target is the velocity, which is far off.
    assert np.abs(np.asarray(v - u)).max() > 0.1


def test_the_exact_mean_velocity_is_its_own_shortcut_target():
    z, t, h = points()
    np.testing.assert_allclose(shortcut_target(exact, z, t, h), exact(z, t, h), atol=1e-4)
    assert np.abs(np.asarray(exact(z, t, h / 2) - exact(z, t, h))).max() > 0.05


def built(factory, **options):
    model = MLP(num_classes=3, out_channels=2, width=8, depth=1, scan=False, time_scale=1.0)
    return factory(Spec((2,), 3), model, optax.sgd(0.1), Averages((100,)), **options)


@pytest.mark.parametrize("factory", [mean_flow, shortcut])
def test_noise_may_be_coupled_as_in_denoising(factory):
    """On two far points, given the noises of each other, the coupled loss is the smaller one."""
    image = jnp.repeat(jnp.array([[-3.0, 0.0], [3.0, 0.0]]), 32, 0)
    batch = {"image": image, "label": jnp.zeros(64, jnp.int32)}
    losses = []
    for coupling in ("independent", "optimal"):
        m = built(factory, coupling=coupling, share=0.0)
        assert m.separable == (coupling == "independent")
        state = jax.jit(m.init)(jax.random.key(0))
        losses.append(float(jax.jit(m.update)(state, batch, jax.random.key(2))[1]["mse"]))
    # The network says 0 at first, so the loss is the mean of |eps - x0|^2, which pairing lowers.
    assert losses[1] < 0.8 * losses[0]
    with pytest.raises(UsageError, match="method.coupling"):
        built(factory, coupling="best")


@pytest.mark.parametrize("factory", [mean_flow, shortcut])
def test_they_train_and_sample_each_image_from_its_key(factory):
    m = built(factory)
    state = jax.jit(m.init)(jax.random.key(0))
    batch = {"image": jax.random.normal(jax.random.key(1), (8, 2)), "label": jnp.arange(8) % 3}
    update = jax.jit(m.update)
    for n in range(3):
        before = state.params
        state, metrics = update(state, batch, jax.random.fold_in(jax.random.key(2), n))
        assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), before, state.params)
    assert max(map(float, jax.tree.leaves(moved))) > 1e-5
    sampler = m.sampler(steps=2)
    assert sampler.calls == 2
    testing.check_sampler(jax.jit(sampler.fn), state.params, jnp.arange(4) % 3, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: built(mean_flow, share=1.5),
        lambda: built(mean_flow, power=-1.0),
        lambda: built(mean_flow, times="by_loss"),
        lambda: built(shortcut, levels=0),
        lambda: built(shortcut).sampler(steps=0),
    ],
)
def test_bad_options_are_named(call):
    with pytest.raises(UsageError, match="allowed"):
        call()
