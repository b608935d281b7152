"""Attention maps read out of networks and replaced by the identity, and guidance by both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import mesh as meshes
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.guidance.pag import pag
from jaxgen.families.diffusion.guidance.sag import sag
from jaxgen.nn.dit import DiT
from jaxgen.nn.layers import attention_maps
from jaxgen.nn.mlp import MLP
from jaxgen.nn.parallel import received, self_attention, split, values
from jaxgen.nn.unet import UNet
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit

DIT = DiT(3, 1, depth=2, width=16, heads=2, patch=2, qk_norm=True, rope=True)
UNET = UNet(3, 1, channels=8, multipliers=(1,), blocks=1, attention_sizes=(4,))
SHAPE = (4, 8, 1)


def variables(module):
    return live_variables(module, SHAPE, 0.4)


def test_received_attention_and_values_by_numpy():
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 5, 2 * 3 * 4))
    q, k, v = qkv.reshape(2, 5, 2, 3, 4).transpose(3, 0, 2, 1, 4)
    weights = np.exp(q @ k.swapaxes(-1, -2) / 2)
    weights /= weights.sum(-1, keepdims=True)
    given = jnp.asarray(qkv, jnp.float32)
    np.testing.assert_allclose(received(*split(given, 2)[:2]), weights.sum(2).mean(1), rtol=1e-5)
    out = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 8)
    np.testing.assert_allclose(self_attention(given, heads=2), out, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        values(given, 2), given.reshape(2, 5, 2, 3, 4)[:, :, :, 2].reshape(2, 5, 8)
    )


@pytest.mark.parametrize("module", [DIT, UNET], ids=["dit", "unet"])
def test_maps_come_out_beside_an_unchanged_output(module):
    held, args = variables(module), inputs(SHAPE)
    run = quick_jit(lambda v: module.apply(v, *args, mutable=["intermediates"]))
    out, state = run(held)
    plain = quick_jit(lambda v: module.apply(v, *args))(held)
    np.testing.assert_allclose(out, plain, atol=1e-5)
    maps = attention_maps(state["intermediates"], *SHAPE[:2])
    patch = getattr(module, "patch", 1)
    assert set(maps) >= ({0, 1} if module is DIT else {"middle_0"})
    for seen in maps.values():
        assert seen.shape == (3, SHAPE[0] // patch, SHAPE[1] // patch)
        np.testing.assert_allclose(seen.mean((1, 2)), 1, rtol=1e-5)
        assert seen.std() > 1e-3


def test_scan_or_not_the_maps_and_the_perturbed_output_are_the_same():
    held, args = variables(DIT), inputs(SHAPE)
    found = []
    for scan in (True, False):
        module = DIT.clone(scan=scan, identity_attention=(1,))
        run = quick_jit(lambda v, m=module: m.apply(v, *args, mutable=["intermediates"]))
        out, state = run(held)
        found.append((out, attention_maps(state["intermediates"], *SHAPE[:2])[1]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert jnp.abs(found[0][0] - DIT.apply(held, *args)).max() > 1e-3


@pytest.mark.parametrize(("module", "layer"), [(DIT, 1), (UNET, "middle_0")], ids=["dit", "unet"])
def test_guidance_by_a_network(module, layer):
    network = Network(module, paths.linear(), "velocity")
    x, _, labels = inputs(SHAPE)
    keys, t = jax.random.split(jax.random.key(0), 3), jnp.float32(0.6)
    cond = network.denoiser(variables(module)["params"], labels)

    @quick_jit
    def run(x):
        p, _, seen = cond.attend(layer)(keys, x, t, ())
        # Half of the places are above their median.
        guided = [
            cond,
            cond.perturb((layer,)),
            pag(cond, layers=(layer,), scale=2.0),
            sag(cond),
            sag(cond, layer=layer, threshold=jnp.median(seen)),
            sag(cond, layer=layer, threshold=1e3),
        ]
        return p.eps, *(g(keys, x, t)[0].eps for g in guided)

    looked, plain, alone, pushed, blurred, masked, nowhere = run(x)
    np.testing.assert_allclose(looked, plain, atol=1e-5)
    np.testing.assert_allclose(pushed, plain + 2 * (plain - alone), atol=1e-4)
    np.testing.assert_allclose(nowhere, plain, atol=1e-5)
    for one, other in ((alone, plain), (blurred, plain), (masked, plain), (masked, blurred)):
        assert jnp.abs(one - other).max() > 1e-4


def test_on_a_mesh_maps_and_the_perturbed_output_are_the_same():
    """Heads cut along `tensor` are averaged over devices; maps of cut tokens are refused."""
    module, size = DIT.clone(identity_attention=(1,)), (8, 8, 1)
    held, (x, noise, labels) = live_variables(module, size, 0.4), inputs(size, 4)
    labels = labels % 3

    def run(shape):
        layout = meshes.Layout(make_mesh(*shape)) if shape else None

        def call(v):
            out, state = module.apply(v, x, noise, labels, mutable=["intermediates"])
            return out, attention_maps(state["intermediates"], *size[:2])

        with meshes.using(layout):
            return quick_jit(call)(held)

    (out, maps), (other, others) = run(None), run((2, 2, 2, 1))
    # In norm, as the steps in test_meshes are compared.
    assert jnp.linalg.norm(other - out) < 1e-5 * jnp.linalg.norm(out)
    for name in maps:
        np.testing.assert_allclose(others[name], maps[name], rtol=1e-5)
    with pytest.raises(UsageError, match="config.mesh.sequence: got 2"):
        run((2, 2, 1, 2))


def test_layers_that_do_not_exist_are_named():
    held, args = variables(DIT), inputs(SHAPE)
    with pytest.raises(UsageError, match="identity_attention: got .*; allowed: layers 0 to 1"):
        DIT.clone(identity_attention=(2,)).apply(held, *args)
    with pytest.raises(UsageError, match="identity_attention.*middle_0"):
        UNET.clone(identity_attention=("middle_1",)).apply(variables(UNET), *args)
    network = Network(DIT, paths.linear(), "velocity").denoiser(held["params"], args[2])
    keys, t = jax.random.split(jax.random.key(0), 3), jnp.float32(0.5)
    with pytest.raises(UsageError, match="guidance.layer: got 5; allowed: 0, 1"):
        network.attend(5)(keys, args[0], t, ())
    mlp = Network(MLP(num_classes=3, out_channels=1, width=8, depth=1), paths.linear(), "velocity")
    with pytest.raises(UsageError, match="no attention maps"):
        mlp.denoiser({}, args[2]).perturb((0,))
