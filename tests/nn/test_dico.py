"""DiCo: convolutions by a loop, a gate by hand, the U."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.dico import Block, DiCo
from tests.nn_kit import check_on_mesh, inputs, live_variables, quick_jit, random_like

IMAGE = (4, 6, 2)
NET = DiCo(5, 2, depths=(1, 1, 1), width=8, mlp_ratio=2.0, remat="none")
FIELDS = (8, 1, 2.0, False, False, False, 0.0, False, jnp.float32, "", 1e-6)


def normal(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def by_hand(p, x, c):
    """The block on images [2, 3, 4, 8], pixel by pixel."""
    dense = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]
    gelu = lambda h: np.asarray(jax.nn.gelu(h, approximate=True))
    parts = np.split(dense("modulation", c)[:, None, None], 6, axis=-1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    h = dense("value", normal(x) * (1 + scale) + shift)
    out = np.zeros_like(h)
    for i in range(3):
        for j in range(4):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < 3 and 0 <= j + dj < 4:
                        weight = p["depthwise"]["kernel"][di + 1, dj + 1, 0]
                        out[:, i, j] += weight * h[:, i + di, j + dj]
    h = gelu(out + p["depthwise"]["bias"])
    h = h / (1 + np.exp(-dense("gate", h.mean((1, 2)))))[:, None, None]
    x = x + gate * dense("proj", h)
    h = normal(x) * (1 + scale_mlp) + shift_mlp
    return x + gate_mlp * dense("contract", gelu(dense("expand", h)))


def test_a_block_is_the_papers_formula():
    x, c = (jax.random.normal(jax.random.key(n), s) for n, s in ((0, (2, 3, 4, 8)), (1, (2, 8))))
    block, flat = Block(*FIELDS, grid=(3, 4), lowering="direct"), x.reshape(-1, 8)
    params = random_like(jax.eval_shape(block.init, jax.random.key(2), flat, c, None), 0.5)
    found = quick_jit(block.apply)(params, flat, c, None)
    want = by_hand(jax.tree.map(np.asarray, params["params"]), np.asarray(x), np.asarray(c))
    np.testing.assert_allclose(found.reshape(x.shape), want, rtol=1e-4, atol=1e-4)


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def test_every_level_of_the_u_is_joined_with_what_it_was_on_the_way_down():
    net = NET.clone(depths=(1, 1, 1, 1, 1))
    shape = (4, 8, 2)
    params, args = live_variables(net, shape), inputs(shape, 2)
    loss = lambda params: jnp.square(net.apply(params, *args)).sum()
    grads = quick_jit(jax.grad(loss))(params)["params"]
    for level, width in ((0, 8), (1, 16)):
        # What came down lies behind what comes up.
        kernel = grads[f"join_{level}"]["kernel"][0, 0]
        assert kernel.shape[0] == 2 * width
        assert (jnp.abs(kernel).max(1) > 0).all()


def test_taps_are_of_every_stage():
    out, taps = quick_jit(functools.partial(NET.apply, taps=(1, 2, 3)))(variables(), *inputs(IMAGE))
    assert out.shape == (3, *IMAGE) and out.dtype == jnp.float32
    assert [taps[k].shape for k in (1, 2, 3)] == [(3, 24, 8), (3, 6, 16), (3, 24, 16)]


@pytest.mark.parametrize("mesh", [(2, 2, 2, 1), (1, 1, 2, 4)], ids=str)
@pytest.mark.parametrize("lowering", ["patches", "direct"])
def test_it_is_the_same_on_a_mesh(mesh, lowering):
    """Four devices along `sequence` hold 6 pixels in parts of 2, of which some are padding.

    Of "direct" convolutions XLA computes other gradients where they cut an image's rows.
    """
    check_on_mesh(NET.clone(lowering=lowering), IMAGE, mesh)


def test_what_does_not_fit_is_a_usage_error():
    for net, match in (
        (NET.clone(depths=(1, 1)), "model stages"),
        (NET.clone(depths=(1, 0, 1)), "model stages"),
        (NET.clone(depths=(1,) * 5), "image size"),
        (NET.clone(width=7), "model.width"),
    ):
        with pytest.raises(UsageError, match=match):
            jax.eval_shape(net.init, jax.random.key(0), *inputs(IMAGE))
    with pytest.raises(UsageError, match="taps: got 4; allowed: 1 to 3"):
        jax.eval_shape(functools.partial(NET.apply, taps=(4,)), variables(), *inputs(IMAGE))
    with pytest.raises(UsageError, match="model.size"):
        DiCo(5, 2, size="S/2")
