"""Taps are what networks cut short compute, whatever the loop and the mesh; skips reach layers."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn import edm2, placement, unet
from jaxgen.nn.dit import DiT
from jaxgen.nn.masked_dit import MaskedDiT
from jaxgen.nn.mlp import MLP
from jaxgen.nn.stack import Stack, stacked
from jaxgen.nn.uvit import UViT
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit, random_like

IMAGE = (8, 8, 2)
TRANSFORMER = dict(num_classes=8, out_channels=2, depth=3, width=16, heads=4, patch=2)
STACKS: dict[str, nn.Module] = {
    "dit": DiT(**TRANSFORMER, rope=True),
    "uvit": UViT(**TRANSFORMER),
    "masked_dit": MaskedDiT(**TRANSFORMER, decoder_depth=1, decoder_width=16, decoder_heads=4),
    "mlp": MLP(8, 2, width=16, depth=3),
}
SMALL = dict(num_classes=8, out_channels=2, channels=8, multipliers=(1, 2), blocks=1)
UNETS = {
    "unet": (unet.UNet(**SMALL, attention_sizes=(4,)), unet.Block),
    "edm2": (edm2.EDM2(**SMALL, attention_sizes=(4,)), edm2.Block),
}
MESHES = [(2, 1, 2, 2), (1, 2, 1, 4)]


@pytest.fixture(autouse=True)
def cut_small_leaves(monkeypatch):
    monkeypatch.setattr(placement, "SMALLEST", 2**6)


@functools.cache
def given(name):
    """Live variables, and eight examples."""
    module = STACKS[name] if name in STACKS else UNETS[name][0]
    return module, live_variables(module, IMAGE), inputs(IMAGE, 8)


def run(name, taps=(), **changes):
    module, variables, args = given(name)
    module = module.clone(**changes)
    options = dict(train=True, rngs={"dropout": jax.random.key(0)}) if "dropout" in changes else {}
    return quick_jit(functools.partial(module.apply, taps=taps, **options))(variables, *args)


def short(name, k):
    """What a network of k layers, with the first layers' parameters, hands to its last layer."""
    module, variables, args = given(name)
    cut = {
        n: jax.tree.map(lambda a: a[:k], tree) if n == "blocks" else tree
        for n, tree in variables["params"].items()
    }

    def handed(params, *args):
        found = []

        def watch(following, inputs, options, context):
            out = following(*inputs, **options)
            if isinstance(context.module, Stack) and context.module.name == "blocks":
                found.append(out[0])
            return out

        with nn.intercept_methods(watch):
            module.clone(depth=k).apply({"params": params}, *args)
        return found[0]

    return quick_jit(handed)(cut, *args)


@pytest.mark.parametrize("name", ["dit", "mlp", "masked_dit"])
def test_a_tap_is_what_a_network_of_so_many_layers_computes(name):
    _, taps = run(name, (1, 3))
    assert set(taps) == {1, 3}
    for k, tap in taps.items():
        assert tap.shape == ((8, 16) if name == "mlp" else (8, 16, 16))
        np.testing.assert_allclose(tap.reshape(-1, 16), short(name, k), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNETS)
def test_a_tap_of_a_unet_is_what_flax_captures_of_that_block(name):
    module, variables, args = given(name)
    block = UNETS[name][1]

    def captured(variables, *args):
        wanted = {"capture_intermediates": lambda m, _: isinstance(m, block)}
        return module.apply(variables, *args, **wanted, mutable=["intermediates"])

    out, state = quick_jit(captured)(variables, *args)
    blocks = {n: v["__call__"][0] for n, v in state["intermediates"].items() if "__call__" in v}
    assert {"encode_0_0", "halve_1", "middle_0", "double_0", "decode_0_1"} <= set(blocks)
    tapped, taps = run(name, tuple(blocks))
    jax.tree.map(np.testing.assert_array_equal, (tapped, taps), (out, blocks))


CHANGES = [{}, {"scan": False}, {"remat": "full"}, {"dropout": 0.5}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_output_is_the_same_bit_for_bit_with_taps_and_without(change):
    for name in ("dit", "uvit"):
        out, taps = run(name, (2,), **change)
        np.testing.assert_array_equal(out, run(name, **change))
        if "dropout" not in change:
            np.testing.assert_allclose(taps[2], run(name, (1, 2))[1][2], rtol=1e-5, atol=1e-5)


def gradient(name, k, layout=None):
    """(loss, gradient) of a tap, and of the output with it."""
    module, variables, args = given(name)

    def loss(variables, *args):
        out, taps = module.apply(variables, *args, taps=(k,))
        feature, target = taps[k], jnp.sin(jnp.arange(taps[k].size)).reshape(taps[k].shape)
        return jnp.stack([(feature * target).sum(), jnp.square(out).mean() + feature.mean()])

    with using(layout):
        return quick_jit(lambda v, *a: (loss(v, *a), jax.jacrev(loss)(v, *a)))(variables, *args)


def layers(tree):
    """The largest absolute value in each layer of a stack's leaf, [depth]."""
    return np.stack([np.abs(a).reshape(len(a), -1).max(1) for a in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", ["dit", "mlp"])
def test_a_taps_gradient_reaches_the_layers_below_and_no_other(name):
    grads = jax.tree.map(lambda a: a[0], gradient(name, 2)[1]["params"])
    found = layers(grads["blocks"])
    assert (found[:, :2].max(0) > 0).all() and (found[:, 2] == 0).all()
    assert not any(np.any(a) for n in ("out", "modulation") for a in jax.tree.leaves(grads[n]))


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("name", ["dit", "uvit"])
def test_taps_and_their_gradients_are_the_same_on_any_mesh(name, shape):
    """Of U-ViT the skips too, and 18 tokens that four devices do not divide."""
    want = gradient(name, 2)
    found = gradient(name, 2, Layout(make_mesh(*shape)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


def test_taps_compile_each_layer_once_and_keep_only_what_is_asked_for():
    module, variables, args = given("dit")

    def program(taps):
        return str(jax.make_jaxpr(functools.partial(module.apply, taps=taps))(variables, *args))

    plain, tapped = program(()), program((1, 2))
    assert "num_carry=1" in plain and "num_carry=3" in tapped
    for part in ("scan[", "dot_general"):
        assert plain.count(part) == tapped.count(part) > 0
    assert "f32[128,16]" in tapped and "f32[3,128,16]" not in tapped


UNKNOWN = {
    "dit": (4, "taps: got 4; allowed: 1 to 3"),
    "uvit": (0, "taps: got 0; allowed: 1 to 3"),
    "mlp": ("middle_0", "taps: got 'middle_0'; allowed: 1 to 3"),
    "unet": (1, "taps: got 1; allowed: encode_0_0, halve_1, encode_1_0, middle_0"),
    "edm2": ("middle", "taps: got 'middle'; allowed: encode_0_0, halve_1"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_taps_are_errors_that_list_what_there_is(name):
    tap, message = UNKNOWN[name]
    module, variables, args = given(name)
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(functools.partial(module.apply, taps=(tap,)), variables, *args)


class Mixing(nn.Module):
    """A block that is told something of each token, of each example, and of each layer."""

    @nn.compact
    def __call__(self, x, token, example, layer):
        h = nn.Dense(x.shape[-1], name="mix")(x) + token.reshape(x.shape)
        h = h.reshape(len(example), -1, x.shape[-1]) * example[:, None]
        return x + layer * jnp.tanh(h.reshape(x.shape))


DEPTH, PLACES, WIDTH = 3, 5, 4
MIXING = stacked(Mixing, DEPTH, scan=True, remat="full", per_layer=("tokens", "examples", None))


@functools.cache
def own():
    """x, and what each layer has of its own."""
    shapes = (8 * PLACES, WIDTH), (DEPTH, 8, PLACES, WIDTH), (DEPTH, 8, WIDTH), (DEPTH,)
    return random_like([jnp.zeros(s) for s in shapes], 1.0)


def through_stack(params, x, *each):
    """(x, all outputs [DEPTH, B, PLACES, WIDTH])."""
    stack = MIXING(name="blocks")
    return stack.apply({"params": params}, x, places=PLACES, each=each, every=True)


def by_hand(params, x, *each):
    outputs = []
    for i in range(DEPTH):
        layer, inputs = jax.tree.map(lambda a, i=i: a[i], (params, each))
        x = Mixing().apply({"params": layer}, x, *inputs)
        outputs.append(x.reshape(8, PLACES, WIDTH))
    return x, jnp.stack(outputs)


@pytest.mark.parametrize("shape", [None, (2, 2, 1, 2), (1, 2, 1, 4)], ids=str)
def test_each_layer_has_its_own_inputs_and_hands_back_its_output(shape):
    """Forward and backward, against a loop; five tokens are a multiple of no axis."""
    params = random_like(
        {"mix": {"kernel": jnp.zeros((DEPTH, WIDTH, WIDTH)), "bias": jnp.zeros((DEPTH, WIDTH))}}
    )

    def both(fn):
        def loss(*args):
            out, outputs = fn(*args)
            weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
            return jnp.square(out).sum() + (outputs * weights).sum(), outputs

        return quick_jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(params, *own())

    with using(None if shape is None else Layout(make_mesh(*shape))):
        found = both(through_stack)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(both(by_hand)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
