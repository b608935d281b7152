"""What the tests of networks share: inputs, live parameters, and a jit that compiles fast."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Compiling dominates the time of these tests, and unoptimised code computes the same numbers.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def inputs(shape, batch=3):
    x = np.random.default_rng(3).normal(size=(batch, *shape))
    noise = jnp.linspace(0.05, 0.9, batch)
    return jnp.asarray(x, jnp.float32), noise, jnp.arange(batch, dtype=jnp.int32)


def abstract(module, shape):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs(shape, 1))


def random_like(tree, scale=0.2):
    """Normal arrays with the shapes and dtypes of a tree's, from NumPy: nothing is compiled."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), tree)


def live_variables(module, shape, scale=0.2):
    """Random variables away from their initial zeros, so that every branch is live."""
    return random_like(abstract(module, shape), scale)


def live_params(method, scale=0.3):
    """The same for all parameters of a method."""
    return random_like(jax.eval_shape(method.init, jax.random.key(0)).params, scale)


def first_state(method):
    """A method's first state, as one program: operation by operation each would be compiled."""
    return quick_jit(method.init)(jax.random.key(0))
