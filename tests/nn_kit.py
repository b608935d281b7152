"""What the tests of networks share: inputs, live parameters, and a jit that compiles fast."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.mesh import Layout, using
from jaxgen.nn import placement
from jaxgen.testing.functions import quick_jit
from jaxgen.testing.networks import live_variables, random_like
from jaxgen.training.sharding import make_mesh

__all__ = [
    "abstract",
    "check_on_mesh",
    "first_state",
    "inputs",
    "live_params",
    "live_variables",
    "quick_jit",
    "random_like",
]


def inputs(shape, batch=3):
    x = np.random.default_rng(3).normal(size=(batch, *shape))
    noise = jnp.linspace(0.05, 0.9, batch)
    return jnp.asarray(x, jnp.float32), noise, jnp.arange(batch, dtype=jnp.int32)


def abstract(module, shape):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs(shape, 1))


def check_on_mesh(net, shape, mesh):
    """A network's gradient, of every parameter, is the same on a mesh of these sides."""
    args, variables = inputs(shape, 4), live_variables(net, shape)

    def gradient(layout):
        def loss(variables):
            return jnp.square(net.apply(variables, *args) - 1).mean()

        with using(layout):
            return quick_jit(jax.value_and_grad(loss))(variables)

    want = gradient(None)
    with mock.patch.object(placement, "SMALLEST", 2**6):
        found = gradient(Layout(make_mesh(*mesh)))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want)


def live_params(method, scale=0.3):
    """Random parameters of a method, away from their initial zeros."""
    return random_like(jax.eval_shape(method.init, jax.random.key(0)).params, scale)


def first_state(method):
    """A method's first state, as one program: operation by operation each would be compiled."""
    return quick_jit(method.init)(jax.random.key(0))
