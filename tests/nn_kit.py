"""What the tests of networks share: inputs, live parameters, and a jit that compiles fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.functions import quick_jit
from jaxgen.testing.networks import live_variables, random_like

__all__ = [
    "abstract",
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


def live_params(method, scale=0.3):
    """Random parameters of a method, away from their initial zeros."""
    return random_like(jax.eval_shape(method.init, jax.random.key(0)).params, scale)


def first_state(method):
    """A method's first state, as one program: operation by operation each would be compiled."""
    return quick_jit(method.init)(jax.random.key(0))
