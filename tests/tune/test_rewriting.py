"""Rewriting: a layer's keys are found, one is told another value, others keep theirs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.gan import MLPGenerator
from jaxgen.tune import rewriting

GENERATOR = MLPGenerator((4,), 3, width=8, depth=2, squash=False)


@pytest.fixture(scope="module")
def run():
    """(params, run(params, z) -> outputs with labels 0, 1, 2, ...) of a small generator."""
    init = jax.jit(GENERATOR.init)(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros(1, jnp.int32))
    return init["params"], lambda p, z: GENERATOR.apply({"params": p}, z, jnp.arange(len(z)) % 3)


def test_a_generators_layer_is_rewritten_at_a_latent(run):
    """Its input there is mapped to the new value, bias aside, and the network makes of it what it
    makes of that value."""
    params, apply = run
    z = jax.random.normal(jax.random.key(1), (400, 5))
    keys = rewriting.inputs_of(lambda: apply(params, z), "out")
    assert keys.shape == (400, 8)
    key, value = keys[7], jnp.array([1.0, -2.0, 0.5, 3.0])
    layer = params["out"]
    kernel = rewriting.rewritten(layer["kernel"], rewriting.second_moment(keys), key, value)
    edited = apply({**params, "out": {**layer, "kernel": kernel}}, z)
    np.testing.assert_allclose(edited[7], value + layer["bias"], atol=1e-4)
    assert jnp.abs(edited - apply(params, z)).mean() < jnp.abs(value).mean()


def test_a_convolutions_keys_are_patches():
    conv = nn.Conv(4, (3, 3), padding="VALID")
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    params = conv.init(jax.random.key(1), x)["params"]
    patches = jax.random.normal(jax.random.key(2), (100, 18))
    value = jnp.arange(4.0)
    moment = rewriting.second_moment(patches)
    kernel = rewriting.rewritten(params["kernel"], moment, x.reshape(-1), value)
    assert kernel.shape == (3, 3, 2, 4)
    out = conv.apply({"params": {**params, "kernel": kernel}}, x)
    np.testing.assert_allclose(out[0, 0, 0], value + params["bias"], atol=1e-4)


def test_keys_orthogonal_to_the_span_keep_their_values():
    keys = jax.random.normal(jax.random.key(0), (50, 6))
    kernel = jax.random.normal(jax.random.key(1), (6, 3))
    basis = rewriting.directions(rewriting.second_moment(keys), keys[:2], 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)
    error = lambda w: ((keys[:2] @ w - 1.0) ** 2).sum()
    found = rewriting.fitted(error, kernel, basis, optax.adam(0.05), 400)
    assert error(found) < 1e-3 * error(kernel)
    other = np.linalg.svd(np.asarray(basis.T))[2][2:]
    np.testing.assert_allclose(other @ found, other @ kernel, atol=1e-5)


def test_bad_input_is_named(run):
    params, apply = run
    with pytest.raises(UsageError, match="got 'last'.*hidden0, hidden1, out"):
        rewriting.inputs_of(lambda: apply(params, jnp.zeros((2, 5))), "last")
    with pytest.raises(UsageError, match="1 to 2"):
        rewriting.directions(jnp.eye(6), jnp.ones((2, 6)), 3)
