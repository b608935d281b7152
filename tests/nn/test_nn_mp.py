"""EDM2: magnitudes are preserved, weights stay on their sphere, gradients are tangent to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.method import is_constant
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.mp import (
    MPDense,
    mp_cat,
    mp_fourier,
    mp_silu,
    mp_sum,
    normalise_weights,
    unit_rms,
)
from tests.nn_kit import inputs, live_variables, quick_jit


def rms(x):
    return float(jnp.sqrt(jnp.square(jnp.asarray(x, jnp.float32)).mean()))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(size, shape):
    module = MPDense(64, size)
    x = normal(*shape)
    out = module.apply(module.init(jax.random.key(0), x), x)
    # A SAME convolution loses what would come from beyond the border.
    return out if size is None else out[:, 1:-1, 1:-1]


OPERATIONS = {
    "silu": lambda: mp_silu(normal(100_000)),
    "sum": lambda: mp_sum(normal(100_000), normal(100_000, seed=1), 0.3),
    "cat": lambda: mp_cat(normal(2000, 48), normal(2000, 16, seed=1), 0.5),
    "cat_weighted": lambda: mp_cat(normal(2000, 48), normal(2000, 16, seed=1), 0.2),
    "fourier": lambda: mp_fourier(normal(500), 512),
    "dense": lambda: dense(None, (2000, 96)),
    "conv_1": lambda: dense(1, (8, 16, 16, 32)),
    "conv_3": lambda: dense(3, (8, 16, 16, 32)),
    "unit_rms": lambda: unit_rms(7 * normal(100, 16), -1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_unit_magnitude_in_is_unit_magnitude_out(name):
    assert rms(OPERATIONS[name]()) == pytest.approx(1, abs=0.03)


def test_a_concatenation_weighs_its_parts_and_not_their_widths():
    whole = mp_cat(jnp.ones((1, 48)), jnp.ones((1, 16)), 0.5)
    left, right = jnp.square(whole[:, :48]).sum(), jnp.square(whole[:, 48:]).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-6)


SMALL = EDM2(5, 2, channels=12, multipliers=(1, 2), blocks=1, attention_sizes=(4,), head_channels=6)


def test_after_projection_every_weight_has_unit_root_mean_square_and_gains_are_untouched():
    params = live_variables(SMALL, (8, 8, 2))["params"]
    projected = SMALL.project(params)
    for path, weight in jax.tree_util.tree_leaves_with_path(projected):
        name = jax.tree_util.keystr(path)
        if "gain" in name or is_constant(path):
            continue
        size = jnp.sqrt(jnp.square(weight).mean(tuple(range(weight.ndim - 1))))
        np.testing.assert_allclose(size, 1, rtol=1e-5, err_msg=name)
    assert projected["out_gain"] == params["out_gain"]
    again = normalise_weights(projected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, projected)


def test_the_output_does_not_depend_on_the_weights_length_and_gradients_are_orthogonal_to_them():
    variables = {"params": SMALL.project(live_variables(SMALL, (8, 8, 2))["params"])}
    args = inputs((8, 8, 2))

    def loss(variables):
        return jnp.square(SMALL.apply(variables, *args) - 0.3).mean()

    value_and_grad = quick_jit(jax.value_and_grad(loss))
    value, grads = value_and_grad(variables)
    scaled = jax.tree.map(lambda a: 3 * a if a.ndim > 1 else a, variables)
    assert float(value_and_grad(scaled)[0]) == pytest.approx(float(value), rel=2e-3)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, grad), weight in zip(leaves, jax.tree.leaves(variables), strict=True):
        if weight.ndim < 2:
            continue
        axes = tuple(range(weight.ndim - 1))
        along = jnp.abs((grad * weight).sum(axes))
        lengths = jnp.sqrt(jnp.square(grad).sum(axes) * jnp.square(weight).sum(axes))
        assert jnp.any(lengths > 0), jax.tree_util.keystr(path)
        assert jnp.all(along <= 1e-3 * lengths.max() + 1e-7), jax.tree_util.keystr(path)


def test_activations_keep_their_magnitude_through_the_network_at_initialisation():
    """With the output gain at one, unit input gives an output of about unit magnitude."""
    args = inputs((8, 8, 2), 8)
    variables = quick_jit(SMALL.init)(jax.random.key(0), *args)
    params = {**variables["params"], "out_gain": jnp.ones(())}
    out = quick_jit(SMALL.apply)({"params": params}, *args)
    assert 0.6 < rms(out) < 1.4
