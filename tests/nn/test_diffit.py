"""DiffiT: attention by hand, without time a plain one; the paper's size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn import placement
from jaxgen.nn.diffit import Block, DiffiT
from jaxgen.nn.flops import parameters
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit, random_like

IMAGE = (4, 6, 2)
NET = DiffiT(5, 2, depth=2, width=16, heads=2, patch=2, remat="none")
GRID, TOKENS = (2, 3), 6
FIELDS = (8, 2, 2.0, False, False, False, 0.0, False, jnp.float32, "auto", 1e-6)


def test_the_latent_model_has_the_papers_parameters():
    """Hatamizadeh et al. 2024, ImageNet-256: 561 million."""
    assert round(parameters(DiffiT(1000, 8), (32, 32, 4)) / 1e6) == 561


def normal(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def by_hand(p, x, c):
    """The block on tokens [B, TOKENS, 8], head by head, pair by pair of patches."""
    dense = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]
    qkv = (dense("qkv", normal(x)) + dense("time_qkv", c)[:, None]).reshape(2, TOKENS, 2, 3, 4)
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, :, head, n] for n in range(3))
        bias = np.zeros((TOKENS, TOKENS))
        for i in range(TOKENS):
            for j in range(TOKENS):
                down, right = i // 3 - j // 3 + 1, i % 3 - j % 3 + 2
                bias[i, j] = p["relative"]["kernel"][down * 5 + right, head]
        heads.append(jax.nn.softmax(q @ k.mT / 2 + bias) @ v)
    x = x + dense("proj", jnp.concatenate(heads, -1))
    return x + dense("contract", jax.nn.gelu(dense("expand", normal(x)), approximate=True))


def test_a_block_is_the_papers_formula():
    x, c = (jax.random.normal(jax.random.key(n), s) for n, s in ((0, (2, TOKENS, 8)), (1, (2, 8))))
    block, flat = Block(*FIELDS, grid=GRID), x.reshape(-1, 8)
    params = random_like(jax.eval_shape(block.init, jax.random.key(2), flat, c, None), 0.5)
    found = quick_jit(block.apply)(params, flat, c, None)
    want = by_hand(jax.tree.map(np.asarray, params["params"]), x, c)
    np.testing.assert_allclose(found.reshape(x.shape), want, rtol=1e-4, atol=1e-5)


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def test_without_its_time_weights_no_time_or_label_is_told():
    params = variables()["params"]
    timed = jax.tree.map(jnp.zeros_like, params["blocks"]["time_qkv"])
    deaf = {**params, "blocks": {**params["blocks"], "time_qkv": timed}}
    x, noise, labels = inputs(IMAGE, 2)
    apply = quick_jit(NET.apply)
    for given, told in ((params, True), (deaf, False)):
        out = [apply({"params": given}, x, noise + n, (labels + n) % 5) for n in (0, 1)]
        assert bool(jnp.abs(out[0] - out[1]).max() > 1e-3) == told


def gradient(layout):
    args = inputs(IMAGE, 4)

    def loss(variables):
        return jnp.square(NET.apply(variables, *args) - 1).mean()

    with using(layout):
        return quick_jit(jax.value_and_grad(loss))(variables())


def test_it_is_the_same_on_a_mesh_and_every_parameter_has_a_gradient(monkeypatch):
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    want, found = gradient(None), gradient(Layout(make_mesh(2, 2, 2, 1)))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want)


def test_what_does_not_fit_is_a_usage_error():
    with pytest.raises(UsageError, match=r"model.size: got 'S/2'.*'XL/2'"):
        DiffiT(5, 2, "S/2")
    with using(Layout(make_mesh(1, 1, 1, 8))), pytest.raises(UsageError, match="mesh.sequence"):
        jax.eval_shape(NET.apply, variables(), *inputs(IMAGE, 4))
