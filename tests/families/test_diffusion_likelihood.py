"""The probability-flow likelihood equals closed forms, and its parts are what they say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.likelihood import bits_per_dim, flow_log_prob

MEANS, STDS, WEIGHTS = testing.ASYMMETRIC


def mixture_sample(count):
    mode = jax.random.choice(jax.random.key(0), 3, (count,), p=jnp.asarray(WEIGHTS))
    noise = jax.random.normal(jax.random.key(1), (count, 2))
    return jnp.asarray(MEANS)[mode] + jnp.asarray(STDS)[mode][:, None] * noise


def run(path, denoiser, x, **options):
    keys = jax.random.split(jax.random.key(2), x.shape[0])
    return jax.jit(lambda x, k: flow_log_prob(denoiser, path, x, k, **options))(x, keys)


FORGETFUL = {
    "linear": paths.linear,
    "trig": paths.trig,
    "cosine": paths.cosine,
    "vp_linear": lambda: paths.vp_linear(0.1, 40.0),
    "ve": lambda: paths.ve(0.01, 1e4),
    "edm": lambda: paths.edm(0.002, 1e4),
}
"""Paths whose end forgets the data: N(0, sigma(1)^2) is then the end's law to below 1e-3 nats."""


@pytest.mark.parametrize("name", FORGETFUL)
def test_log_density_equals_the_closed_form(name):
    """To 1e-3 nats on an asymmetric mixture (the check of score_sde)."""
    with jax.enable_x64(True):
        path = FORGETFUL[name]()
        x = mixture_sample(32).astype(jnp.float64)
        denoiser = testing.mixture_denoiser(path, MEANS, STDS, WEIGHTS)
        value = run(path, denoiser, x, steps=128, trace="exact")
        exact = testing.mixture_log_prob(path, x, jnp.float64(0), MEANS, STDS, WEIGHTS)
        gap = np.abs(np.asarray(value - exact))
    assert gap.max() < 1e-3, gap.max()


def test_float32_is_good_to_a_few_thousandths():
    path = paths.linear()
    x = mixture_sample(32)
    value = run(path, testing.mixture_denoiser(path, MEANS, STDS, WEIGHTS), x, trace="exact")
    exact = testing.mixture_log_prob(path, x, jnp.float32(0), MEANS, STDS, WEIGHTS)
    np.testing.assert_allclose(value, exact, atol=5e-3)


def test_the_density_sums_to_one():
    path = paths.linear()
    axis = jnp.linspace(-4, 4, 41)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    denoiser = testing.mixture_denoiser(path, MEANS, STDS, WEIGHTS)
    total = jnp.exp(run(path, denoiser, grid, steps=24, trace="exact")).sum() * 0.2**2
    assert abs(float(total) - 1) < 0.01


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinson_estimates_average_to_the_trace(trace):
    path = paths.linear()
    denoiser = testing.mixture_denoiser(path, MEANS, STDS, WEIGHTS)
    x = jnp.broadcast_to(jnp.array([0.3, -0.8]), (256, 2))
    exact = run(path, denoiser, x[:1], steps=12, trace="exact")[0]
    values = run(path, denoiser, x, steps=12, trace=trace, probes=2)
    error = float(values.std()) / np.sqrt(256)
    assert error > 0
    assert abs(float(values.mean()) - float(exact)) < 4 * error + 1e-3


def test_rademacher_is_exact_for_a_diagonal_jacobian():
    path = paths.linear()
    denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
    x = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), (8, 4))
    value = run(path, denoiser, x)
    exact = -0.5 * (((x - 0.7) / 0.5) ** 2 + np.log(2 * np.pi * 0.25)).sum(1)
    np.testing.assert_allclose(value, exact, atol=5e-3)


def test_without_the_divergence_it_is_wrong():
    """What the check is worth: the density at the other end alone misses by nats."""
    path = paths.linear()
    x = jnp.array([[0.7, 0.7]])
    denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
    z = testing.gaussian_flow(path, x, jnp.float32(0), jnp.float32(1), 0.7, 0.5)
    prior = -0.5 * (z**2 + np.log(2 * np.pi)).sum()
    assert abs(float(run(path, denoiser, x)[0] - prior)) > 1


def test_bits_per_dim_of_a_uniform_density():
    """Uniform on [-1, 1]^d with 256 levels is 8 bits a pixel."""
    assert abs(float(bits_per_dim(-10 * jnp.log(2.0), 10)) - 8) < 1e-5


@pytest.mark.parametrize("options", [dict(trace="hutch"), dict(steps=0), dict(probes=0)])
def test_bad_options_are_named(options):
    path = paths.linear()
    with pytest.raises(UsageError, match="log_prob"):
        flow_log_prob(testing.gaussian_denoiser(path), path, jnp.zeros((1, 2)),
                      jax.random.split(jax.random.key(0), 1), **options)  # fmt: skip
