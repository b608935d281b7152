"""U-ViT: the paper's sizes and its skips; tokens that only their positions tell apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn import bert
from jaxgen.nn.dit import patchify, unpatchify
from jaxgen.nn.flops import parameters
from jaxgen.nn.stack import stacked
from jaxgen.nn.uvit import Block, UViT
from tests.nn_kit import inputs, live_variables, quick_jit

NET = UViT(5, 2, depth=5, width=16, heads=2, patch=2)
SHALLOW, DEEP, TOKENS = 3, 2, 4 * 4 + 2
FIELDS = (16, 2, 4.0, TOKENS, 0.0, False, jnp.float32, "auto")


@pytest.fixture(scope="module")
def params():
    return live_variables(NET, (8, 8, 2))["params"]


def entering(params, x, noise, labels):
    """The tokens that enter the first layer, [B, TOKENS, 16]: time, label, patches."""
    angles = 1000 * noise[:, None] * 10_000.0 ** (-jnp.arange(8) / 8)
    time = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
    label = params["labels"]["embedding"][labels]
    patches = patchify(x, 2) @ params["patch"]["kernel"] + params["patch"]["bias"]
    h = jnp.concatenate([time[:, None], label[:, None], patches.reshape(len(x), -1, 16)], axis=1)
    return h + params["positions"]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# Bao et al. 2023, table 1, at the data that each was trained on.
PAPER = [
    ("S/2", 10, (32, 32, 3), 44),
    ("S-Deep/2", 10, (32, 32, 3), 58),
    ("M/4", 1000, (64, 64, 3), 131),
    ("L/2", 1000, (32, 32, 4), 287),
    ("H/2", 1000, (32, 32, 4), 501),
]


@pytest.mark.parametrize(("size", "classes", "shape", "millions"), PAPER, ids=lambda v: str(v))
def test_sizes_have_the_papers_parameters(size, classes, shape, millions):
    module = UViT(classes, shape[-1], size)
    assert round(parameters(module, shape) / 1e6) == millions


def test_layers_merge_the_outputs_of_their_mirror_images(params):
    """The paper's loop: the first half pushes its outputs on a pile, the second takes them off."""
    args = inputs((8, 8, 2))
    out, taps = NET.apply({"params": params}, *args, taps=(1, 2, 3, 4, 5))
    assert params["positions"].shape == (TOKENS, 16)
    h, pile = entering(params, *args).reshape(-1, 16), []
    block = Block(*FIELDS, qkv_bias=False)
    for k in range(1, 6):
        stack, i = ("shallow", k - 1) if k <= SHALLOW else ("deep", k - 1 - SHALLOW)
        layer = jax.tree.map(lambda a, i=i: a[i], params[f"{stack}_blocks"])
        h = block.apply({"params": layer}, h, *([pile.pop()] if stack == "deep" else []))
        tokens = h.reshape(3, TOKENS, 16)
        if k < SHALLOW:
            pile.append(tokens)
        close(taps[k], tokens[:, 2:])
    assert not pile
    h = tokens[:, 2:] - tokens[:, 2:].mean(-1, keepdims=True)
    h = h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
    h = h * params["norm"]["scale"] + params["norm"]["bias"]
    h = h.reshape(-1, 16) @ params["out"]["kernel"] + params["out"]["bias"]
    h = jnp.pad(unpatchify(h, 3, 4, 4, 2), [(0, 0), (1, 1), (1, 1), (0, 0)])
    kernel = params["conv"]["kernel"]
    shifts = [h[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)]
    close(out, sum(shifts) + params["conv"]["bias"])


def test_without_its_skips_it_is_a_plain_stack_of_layers(params):
    """With the identity for the other half of what projects them."""
    deep, args = dict(params["deep_blocks"]), inputs((8, 8, 2))
    kernel = jnp.concatenate([jnp.eye(16), jnp.zeros((16, 16))])
    deep["skip"] = {"kernel": jnp.stack([kernel] * DEEP), "bias": jnp.zeros((DEEP, 16))}
    _, without = NET.apply({"params": {**params, "deep_blocks": deep}}, *args, taps=(5,))
    _, live = NET.apply({"params": params}, *args, taps=(5,))
    assert jnp.abs(without[5] - live[5]).max() > 0.1
    del deep["skip"]
    layers = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), params["shallow_blocks"], deep)
    plain = stacked(bert.Block, 5, scan=True, remat="none")(*FIELDS, qkv_bias=False)
    h = entering(params, *args).reshape(-1, 16)
    out = plain.apply({"params": layers}, h, places=TOKENS)
    close(out.reshape(3, TOKENS, 16)[:, 2:], without[5])


def test_every_skip_has_a_gradient(params):
    args = inputs((8, 8, 2))

    def loss(params):
        return jnp.square(NET.apply({"params": params}, *args)).mean()

    kernel = quick_jit(jax.grad(loss))(params)["deep_blocks"]["skip"]["kernel"]
    assert (jnp.abs(kernel[:, 16:]).max((1, 2)) > 1e-6).all()


def test_patches_without_positions_are_a_set(params):
    """And a last convolution that looks at its own pixel alone."""
    x, noise, labels = inputs((8, 8, 2))
    centre = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    bare = {
        **params,
        "positions": jnp.zeros((TOKENS, 16)),
        "conv": {**params["conv"], "kernel": centre},
    }
    order = np.random.default_rng(0).permutation(16)

    def shuffled(image):
        patches = patchify(image, 2).reshape(3, 16, -1)[:, order]
        return unpatchify(patches.reshape(48, -1), 3, 4, 4, 2)

    for params_, same in ((bare, True), ({**bare, "positions": params["positions"]}, False)):
        first = NET.apply({"params": params_}, shuffled(x), noise, labels)
        then = shuffled(NET.apply({"params": params_}, x, noise, labels))
        assert bool(jnp.abs(first - then).max() < 1e-4) == same


def test_an_out_of_range_label_is_never_silent(params):
    x, noise, _ = inputs((8, 8, 2))
    assert jnp.isnan(NET.apply({"params": params}, x, noise, jnp.full(3, 6))).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(size="S/3"), "model.size: got 'S/3'; allowed: H/2, .*S/2"),
        (dict(depth=4), "model.depth: got 4; allowed: odd"),
        (dict(depth=1), "model.depth: got 1"),
        (dict(heads=5), "model.width: got 512; allowed: multiples of .* = 10"),
        (dict(patch=3), "image size: got .8, 8, 2.*patch=3"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_usage_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(UViT(5, 2, **fields).init, jax.random.key(0), *inputs((8, 8, 2)))
