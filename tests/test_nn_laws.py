"""Laws of every network in jaxgen.nn: a new one is tested by being added to NETWORKS."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_kit import abstract, inputs, live_variables, quick_jit

from jaxgen.errors import UsageError
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.mlp import MLP

IMAGE = (8, 8, 2)
SMALL_DIT = DiT(5, 2, depth=2, width=16, heads=2, patch=2)
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (MLP(5, 3, width=16, depth=2), (3,)),
    "mlp_image": (MLP(5, 2, width=16, depth=2), (2, 2, 2)),
    "dit": (SMALL_DIT, IMAGE),
    "dit_variants": (SMALL_DIT.clone(qk_norm=True, rope=True, swiglu=True), IMAGE),
}


@functools.cache
def variables_of(name):
    return live_variables(*NETWORKS[name])


@pytest.fixture(params=NETWORKS)
def network(request):
    return *NETWORKS[request.param], variables_of(request.param)


@functools.cache
def value_and_grad(name, **changes):
    """Loss and gradient over examples of every label, the null label (5) included."""
    module, shape = NETWORKS[name]
    x, noise, _ = inputs(shape, 6)

    def loss(variables):
        out = module.clone(**changes).apply(variables, x, noise, jnp.arange(6, dtype=jnp.int32))
        return jnp.square(out - x.mean()).mean()

    return quick_jit(jax.value_and_grad(loss))(variables_of(name))


def test_forward_is_finite_in_float32_and_close_in_bfloat16(network):
    module, shape, variables = network
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        outputs[dtype] = quick_jit(module.clone(dtype=dtype).apply)(variables, *inputs(shape))
        assert outputs[dtype].dtype == jnp.float32
        assert outputs[dtype].shape == (3, *shape[:-1], module.out_channels)
        assert jnp.isfinite(outputs[dtype]).all()
    gap = jnp.abs(outputs["float32"] - outputs["bfloat16"]).max()
    assert 0 < gap < 0.1 * jnp.abs(outputs["float32"]).max()


def test_parameters_are_float32_whatever_the_compute_dtype(network):
    module, shape, _ = network
    variables = abstract(module.clone(dtype="bfloat16"), shape)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name):
    for path, grad in jax.tree_util.tree_leaves_with_path(value_and_grad(name)[1]):
        assert jnp.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_the_null_label_is_a_label_of_its_own_and_noise_matters(network):
    module, shape, variables = network
    x = jnp.broadcast_to(inputs(shape, 1)[0], (6, *shape))
    apply = quick_jit(module.apply)
    out = apply(variables, x, jnp.full(6, 0.5), jnp.arange(6, dtype=jnp.int32))
    assert jnp.isfinite(out).all()
    flat = np.asarray(out).reshape(6, -1)
    gaps = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(6)
    assert gaps.min() > 1e-4
    noisy = apply(variables, x, jnp.linspace(0.0, 1.0, 6), jnp.zeros(6, jnp.int32))
    assert np.abs(np.diff(np.asarray(noisy).reshape(6, -1), axis=0)).max(-1).min() > 1e-4


def test_each_image_is_computed_by_itself(network):
    module, shape, variables = network
    x, noise, labels = inputs(shape, 4)
    whole = quick_jit(module.apply)(variables, x, noise, labels)
    order = jnp.array([2, 0, 3, 1])
    permuted = quick_jit(module.apply)(variables, x[order], noise[order], labels[order])
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-4, atol=1e-5)


def test_a_second_call_does_not_recompile(network):
    module, shape, variables = network
    traces = []

    @quick_jit
    def apply(variables, *args):
        traces.append(1)
        return module.apply(variables, *args)

    apply(variables, *inputs(shape))
    x, noise, labels = inputs(shape)
    apply(variables, x + 1, noise / 2, labels + 1)
    assert len(traces) == 1


def test_dropout_acts_in_training_only(network):
    module, shape, variables = network
    module = module.clone(dropout=0.5)
    apply = quick_jit(module.apply, static_argnames="train")
    args = inputs(shape)
    one, two = (
        apply(variables, *args, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)
    )
    still = apply(variables, *args, train=False)
    assert jnp.abs(one - two).max() > 1e-4
    plain = quick_jit(module.clone(dropout=0.0).apply)(variables, *args)
    np.testing.assert_array_equal(still, plain)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}, {"remat": "dots"}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_scan_and_remat_change_nothing_but_speed_and_memory(name, change):
    if set(change) - set(NETWORKS[name][0].__dataclass_fields__):
        pytest.skip("the network has no such field")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        value_and_grad(name),
        value_and_grad(name, **change),
    )


def test_unknown_dtype_and_remat_are_usage_errors(network):
    module, shape, _ = network
    with pytest.raises(UsageError, match=r"model.dtype: got 'bfloat61'.*'bfloat16'"):
        jax.eval_shape(module.clone(dtype="bfloat61").init, jax.random.key(0), *inputs(shape))
    with pytest.raises(UsageError, match=r"model.remat: got 'dot'.*'dots'"):
        jax.eval_shape(module.clone(remat="dot").init, jax.random.key(0), *inputs(shape))


def test_multiply_adds_are_linear_in_the_batch_and_seen_through_scan_and_remat(network):
    module, shape, _ = network
    one = multiply_adds(module, shape)
    assert one > 0
    assert multiply_adds(module, shape, batch=4) == 4 * one
    for change in ({"scan": False}, {"remat": "full"}):
        if set(change) <= set(module.__dataclass_fields__):
            assert multiply_adds(module.clone(**change), shape) == one
