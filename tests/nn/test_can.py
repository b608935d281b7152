"""CAN: kernels of each example's own; without generated ones a DiT."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn import placement
from jaxgen.nn.can import CAN, Generated
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import parameters
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit, random_like

IMAGE = (4, 4, 2)
FIELDS = dict(num_classes=5, out_channels=2, depth=1, width=16, heads=2, patch=2, remat="none")
NET = CAN(**FIELDS, rank=3)


def test_a_layer_is_a_loop_over_examples():
    layer = Generated(4, 3, jnp.float32)
    x, c = (jax.random.normal(jax.random.key(n), s) for n, s in ((0, (10, 5)), (1, (2, 6))))
    params = random_like(jax.eval_shape(layer.init, jax.random.key(2), x, c), 0.5)
    found, p = quick_jit(layer.apply)(params, x, c), params["params"]
    for b in range(2):
        mix = c[b] @ p["mix"]["kernel"] + p["mix"]["bias"]
        kernel = p["kernel"] + sum(mix[r] * p["generator"][r] for r in range(3))
        want = x[5 * b : 5 * b + 5] @ kernel + p["bias"]
        np.testing.assert_allclose(found[5 * b : 5 * b + 5], want, rtol=1e-5, atol=1e-5)


def test_without_generated_kernels_it_is_a_dit():
    dit, args = DiT(**FIELDS), inputs(IMAGE, 2)
    params = live_variables(dit, IMAGE)["params"]
    ours = live_variables(NET, IMAGE)["params"]

    def still(own, static):
        return {**static, "mix": own["mix"], "generator": jnp.zeros_like(own["generator"])}

    blocks = {**params["blocks"], "proj": still(ours["blocks"]["proj"], params["blocks"]["proj"])}
    given = {**params, "blocks": blocks, "patch": still(ours["patch"], params["patch"])}
    apply = quick_jit(NET.apply)
    found = apply({"params": given}, *args)
    want = quick_jit(dit.apply)({"params": params}, *args)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))
    given["patch"] = {**given["patch"], "generator": ours["patch"]["generator"]}
    assert jnp.abs(apply({"params": given}, *args) - want).max() > 1e-2


def test_what_is_generated_is_all_that_is_more():
    net, dit = (kind(1000, 8, "S/2") for kind in (CAN, DiT))
    w, rank = 384, 8
    more = rank * 16 * w + rank * (w + 1) + 12 * (rank * w * w + rank * (w + 1))
    assert parameters(net, (32, 32, 4)) - parameters(dit, (32, 32, 4)) == more


def gradient(layout):
    args, variables = inputs(IMAGE, 4), live_variables(NET, IMAGE)

    def loss(variables):
        return jnp.square(NET.apply(variables, *args) - 1).mean()

    with using(layout):
        return quick_jit(jax.value_and_grad(loss))(variables)


def test_it_is_the_same_on_a_mesh_and_every_parameter_has_a_gradient(monkeypatch):
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    want, found = gradient(None), gradient(Layout(make_mesh(2, 1, 2, 2)))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want)


def test_a_rank_below_one_is_a_usage_error():
    with pytest.raises(UsageError, match="model.rank: got 0; allowed: rank >= 1"):
        jax.eval_shape(functools.partial(NET.clone(rank=0).init, jax.random.key(0)), *inputs(IMAGE))
