"""Laws of every network in jaxgen.nn: a new one is tested by being added to NETWORKS."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.method import is_constant
from jaxgen.nn.ascan import AsCAN
from jaxgen.nn.dico import DiCo
from jaxgen.nn.dimr import DiMR
from jaxgen.nn.dis import DiS
from jaxgen.nn.dit import DiT
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.gsdm import GSDM
from jaxgen.nn.iwin import Iwin
from jaxgen.nn.mlp import MLP
from jaxgen.nn.unet import ADM, NCSNpp
from jaxgen.nn.uvit import UViT
from tests.nn_kit import abstract, inputs, live_variables, quick_jit

IMAGE = (8, 8, 2)
SMALL_DIT = DiT(5, 2, depth=2, width=16, heads=2, patch=2, remat="none")
SMALL_UNET = {
    "num_classes": 5,
    "out_channels": 2,
    "channels": 12,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_sizes": (4,),
}
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (MLP(5, 3, width=16, depth=2), (3,)),
    "mlp_image": (MLP(5, 2, width=16, depth=2), (2, 2, 2)),
    "dit": (SMALL_DIT, IMAGE),
    "ncsnpp": (NCSNpp(**SMALL_UNET), IMAGE),
    "adm": (ADM(**SMALL_UNET, head_channels=6), IMAGE),
    "edm2": (EDM2(**SMALL_UNET, head_channels=6), IMAGE),
    "uvit": (UViT(5, 2, depth=3, width=16, heads=2, patch=2, remat="none"), IMAGE),
    "ascan": (AsCAN(5, 2, width=8, head_channels=4, stages=("C", "T", "C")), IMAGE),
    "dico": (DiCo(5, 2, width=8, depths=(1, 1, 1), mlp_ratio=2.0), IMAGE),
    "dimr": (DiMR(5, 2, depths=(1, 1), widths=(8, 8), heads=2), IMAGE),
    "dis": (DiS(5, 2, depth=3, width=32, patch=2, states=4), IMAGE),
    "gsdm": (GSDM(5, 2, depth=2, width=16, heads=2, patch=2, edges=((0, 1), (1, 2))), IMAGE),
    "iwin": (Iwin(5, 2, depth=2, width=16, heads=2, patch=2, window=2), IMAGE),
    "dit_variants": (SMALL_DIT.clone(qk_norm=True, rope=True, swiglu=True), IMAGE),
}


@functools.cache
def variables_of(name):
    return live_variables(*NETWORKS[name])


@functools.cache
def forward(name, **changes):
    """The compiled forward pass; one for all tests, since compiling is what takes the time."""
    return quick_jit(NETWORKS[name][0].clone(**changes).apply, static_argnames="train")


@functools.cache
def value_and_grad(name, **changes):
    """Loss and gradient over examples of every label, the null label (5) included."""
    module, shape = NETWORKS[name]
    x, noise, _ = inputs(shape, 6)

    def loss(variables):
        out = module.clone(**changes).apply(variables, x, noise, jnp.arange(6, dtype=jnp.int32))
        return jnp.square(out - x.mean()).mean()

    return quick_jit(jax.value_and_grad(loss))(variables_of(name))


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def test_forward_is_finite_in_float32_and_close_in_bfloat16(name):
    module, shape = NETWORKS[name]
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        outputs[dtype] = forward(name, dtype=dtype)(variables_of(name), *inputs(shape, 6))
        assert outputs[dtype].dtype == jnp.float32
        assert outputs[dtype].shape == (6, *shape[:-1], module.out_channels)
        assert jnp.isfinite(outputs[dtype]).all()
    gap = jnp.abs(outputs["float32"] - outputs["bfloat16"]).max()
    assert 0 < gap < 0.1 * jnp.abs(outputs["float32"]).max()


def test_parameters_are_float32_whatever_the_compute_dtype(name):
    module, shape = NETWORKS[name]
    variables = abstract(module.clone(dtype="bfloat16"), shape)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_every_parameter_gets_a_gradient(name):
    for path, grad in jax.tree_util.tree_leaves_with_path(value_and_grad(name)[1]):
        assert jnp.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert (jnp.abs(grad).max() > 0) != is_constant(path), jax.tree_util.keystr(path)


def test_the_null_label_is_a_label_of_its_own_and_noise_matters(name):
    shape, apply = NETWORKS[name][1], forward(name, dtype="float32")
    x = jnp.broadcast_to(inputs(shape, 1)[0], (6, *shape))
    out = apply(variables_of(name), x, jnp.full(6, 0.5), jnp.arange(6, dtype=jnp.int32))
    assert jnp.isfinite(out).all()
    flat = np.asarray(out).reshape(6, -1)
    gaps = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(6)
    assert gaps.min() > 1e-4
    noisy = apply(variables_of(name), x, jnp.linspace(0.0, 1.0, 6), jnp.zeros(6, jnp.int32))
    assert np.abs(np.diff(np.asarray(noisy).reshape(6, -1), axis=0)).max(-1).min() > 1e-4


def test_each_image_is_computed_by_itself_without_a_new_compilation(name):
    shape, apply = NETWORKS[name][1], forward(name, dtype="float32")
    x, noise, labels = inputs(shape, 6)
    apply(variables_of(name), x, noise, labels)
    compiled = apply._cache_size()
    testing.check_alone(apply, variables_of(name), x, noise, labels, rtol=2e-6)
    assert apply._cache_size() == compiled


def test_dropout_acts_in_training_only(name):
    args = inputs(NETWORKS[name][1], 6)
    plain = forward(name, dtype="float32")(variables_of(name), *args)
    apply = forward(name, dtype="float32", dropout=0.5)
    one, two = (
        apply(variables_of(name), *args, train=True, rngs={"dropout": jax.random.key(i)})
        for i in (0, 1)
    )
    assert jnp.abs(one - two).max() > 1e-4
    np.testing.assert_allclose(apply(variables_of(name), *args), plain, rtol=1e-4, atol=1e-5)


# U-Nets have no scan; "dots" is the same code for every network, so that DiT stands for all.
CHANGES = [(name, {"remat": "full"}) for name in NETWORKS]
CHANGES += [(name, {"scan": False}) for name, (m, _) in NETWORKS.items() if hasattr(m, "scan")]
CHANGES += [("dit", {"remat": "dots"})]


@pytest.mark.parametrize("name,change", CHANGES, ids=str)
def test_scan_and_remat_change_nothing_but_speed_and_memory(name, change):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        value_and_grad(name),
        value_and_grad(name, **change),
    )


def test_unknown_dtype_and_remat_are_usage_errors(name):
    module, shape = NETWORKS[name]
    with pytest.raises(UsageError, match=r"model.dtype: got 'bfloat61'.*'bfloat16'"):
        jax.eval_shape(module.clone(dtype="bfloat61").init, jax.random.key(0), *inputs(shape))
    with pytest.raises(UsageError, match=r"model.remat: got 'dot'.*'dots'"):
        jax.eval_shape(module.clone(remat="dot").init, jax.random.key(0), *inputs(shape))


def test_multiply_adds_are_linear_in_the_batch_and_seen_through_scan_and_remat(name):
    module, shape = NETWORKS[name]
    one = multiply_adds(module, shape)
    assert one > 0
    assert multiply_adds(module, shape, batch=4) == 4 * one
    for change in ({"scan": False}, {"remat": "full"}):
        if set(change) <= set(module.__dataclass_fields__):
            assert multiply_adds(module.clone(**change), shape) == one
