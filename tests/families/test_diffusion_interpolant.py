"""Stochastic interpolants beside what their experiment checks: ends, kinds, couplings, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.methods import interpolant as si

X0, X1, Z = (jax.random.normal(jax.random.key(i), (64, 3)) for i in range(3))


@pytest.mark.parametrize("make", [si.linear, si.trigonometric])
def test_bridges_start_at_the_data_and_end_at_the_base(make):
    bridge = make()
    np.testing.assert_allclose(bridge.mix(X0, X1, Z, jnp.float32(0)), X0, atol=1e-6)
    np.testing.assert_allclose(bridge.mix(X0, X1, Z, jnp.float32(1)), X1, atol=1e-6)
    assert bridge.gamma(jnp.float32(0.5)) > 0
    for t in (0.0, 1.0):
        assert jnp.isfinite(bridge.speed(X0, X1, Z, jnp.float32(t))).all()


def test_one_sided_is_the_diffusion_path():
    path, t = paths.cosine(), jnp.full(64, 0.3)
    bridge = si.one_sided(path)
    np.testing.assert_allclose(bridge.mix(X0, X1, Z, t), path.mix(X0, X1, t), atol=1e-6)
    expected = Prediction(X0, X1).velocity(path, t)
    np.testing.assert_allclose(bridge.speed(X0, X1, Z, t), expected, atol=1e-5)


def test_mirror_returns_to_the_data():
    bridge = si.mirror()
    for t in (0.0, 1.0):
        np.testing.assert_allclose(bridge.mix(X0, X1, Z, jnp.float32(t)), X0, atol=1e-6)


def test_score_of_a_bridge_is_minus_the_denoiser_over_gamma():
    """eta = E[z | x_t] = gamma (x - m) / v for Gaussians, regressed from samples."""
    bridge, t = si.trigonometric(), 0.4
    _, score = si.gaussian_bridge(bridge, (1.0, 0.5), (-0.5, 1.5))
    x0, x1, z = (jax.random.normal(jax.random.key(i), (200_000,)) for i in range(3))
    x = bridge.mix(1.0 + 0.5 * x0, -0.5 + 1.5 * x1, z, jnp.float32(t))
    slope = jnp.cov(x, z)[0, 1] / x.var()
    eta = slope * (x - x.mean()) + z.mean()
    expected = score(x[:, None], jnp.float32(t))[:, 0]
    np.testing.assert_allclose(bridge.score(eta, jnp.float32(t)), expected, atol=0.05)


def test_each_image_of_the_sde_depends_on_its_key_alone():
    velocity, score = si.gaussian_bridge(si.linear(), (1.0, 0.5), (-0.5, 1.5))
    keys = jax.random.split(jax.random.key(0), 8)

    def run(x, keys):
        return si.integrate(velocity, score, x, keys, steps=9, noise=1.0, ends=(0.99, 0.01))

    whole = run(X1[:8], keys)
    np.testing.assert_allclose(run(X1[4:8], keys[4:]), whole[4:], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: si.linear(0.0), "scale"),
        (lambda: si.couple(np.zeros((2, 1)), np.ones((2, 1)), "optimum"), "kind"),
        (lambda: si.integrate(lambda x, t: x, lambda x, t: x, X0, None, steps=0), "steps"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()
