"""LiT: linear attention is its own N x N form; all else is a DiT's, and is inherited."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.families.diffusion.terms.hybrid import hybrid
from jaxgen.mesh import Layout, using
from jaxgen.method import Spec, placed
from jaxgen.nn import placement
from jaxgen.nn.convolution import depthwise
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.nn.lit import LiT, linear_attention
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import abstract, inputs, live_params, live_variables, quick_jit
from tests.toy_diffusion import Teacher

IMAGE = (6, 8, 2)
NET = LiT(5, 2, depth=2, width=16, heads=2, patch=2, kernel=3, remat="none")


def test_linear_attention_is_its_map():
    q, k, v = (jax.random.uniform(jax.random.key(n), (2, 3, 10, 4)) for n in range(3))
    scores = q @ k.mT
    want = (scores / scores.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(linear_attention(q, k, v), want, rtol=1e-5)
    # A query without features attends to nothing, and is no division by zero.
    assert not jnp.any(linear_attention(jnp.zeros_like(q), k, v))


@pytest.mark.parametrize("lowering", ["direct", "patches"])
def test_a_depthwise_convolution_is_a_loop(lowering):
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 5, 1, 3))
    want, padded = np.zeros(x.shape), np.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)))
    for i in range(3):
        for j in range(5):
            want += padded[:, i : i + 4, j : j + 5] * np.asarray(kernel[i, j, 0])
    np.testing.assert_allclose(depthwise(x, kernel, lowering=lowering), want, rtol=1e-4, atol=1e-5)


def test_what_is_no_attention_has_dits_names_and_shapes():
    """So `start` takes it from a DiT, and a LiT is larger by its convolutions alone."""
    dit = DiT(5, 2, depth=2, width=16, heads=2, patch=2)
    ours, theirs = (
        {jax.tree_util.keystr(path): a.shape for path, a in jax.tree_util.tree_leaves_with_path(t)}
        for t in (abstract(NET, IMAGE), abstract(dit, IMAGE))
    )
    fresh = {name for name in ours if name not in theirs}
    assert {name.split("'")[5] for name in fresh} == {"linear_qkv", "linear_proj", "depthwise"}
    assert all(ours[n] == theirs[n] for n in ours if n in theirs)
    for size in ("S/2", "XL/2"):
        lit, dit = LiT(1000, 8, size), DiT(1000, 8, size)
        more = parameters(lit, (32, 32, 4)) - parameters(dit, (32, 32, 4))
        assert more == lit.depth * 26 * lit.width


def test_attention_costs_the_tokens_and_not_their_square():
    net = LiT(10, 8, "S/2", heads=2)
    for side in (32, 64):
        found = multiply_adds(net, (side, side, 4))
        tokens, w, head = (side // 2) ** 2, 384, 192
        condition = 256 * w + w * w + 12 * 6 * w * w + 2 * w * w
        layer = tokens * (12 * w * w + 2 * w * head + w)
        assert found == condition + 12 * layer + tokens * 4 * w * (4 + 8)


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def gradient(layout):
    args = inputs(IMAGE, 4)

    def loss(variables):
        return jnp.square(NET.apply(variables, *args) - 1).mean()

    with using(layout):
        return quick_jit(jax.value_and_grad(loss))(variables())


def test_it_is_the_same_on_a_mesh_and_every_parameter_has_a_gradient(monkeypatch):
    """Twelve tokens on a `sequence` of 8 are padded, heads and channels are cut along `tensor`."""
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    want = gradient(None)
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    for shape in ((1, 1, 1, 8), (1, 2, 2, 2)):
        found = gradient(Layout(make_mesh(*shape)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want
        )


SPEC = Spec((4, 4, 1), 2, levels=None)


def test_hybrid_distillation_vanishes_where_the_student_is_the_teacher():
    def build(learned, terms=(), networks=None):
        net, averages = MLP(2, 1, width=16, depth=1), Averages((100,))
        options = dict(terms=terms, networks=networks, learned_variance=learned)
        how = dict(prediction="eps", path="cosine") if learned else {}
        return denoising(SPEC, net, optax.adam(1e-3), averages, **options, **how)

    batch = placed({"image": jax.random.normal(jax.random.key(1), (6, 4, 4, 1)),
                    "label": jnp.arange(6) % 2}, jnp.zeros((), jnp.int32))  # fmt: skip
    values = {}
    for learned in (True, False):
        plain = build(learned)
        params = live_params(plain)
        other = jax.tree.map(lambda a: a + 0.1, params)
        for name, held, options in (
            ("same", params, {}),
            ("other", other, {}),
            ("noise", other, dict(variance=0.0)),
        ):
            terms = [dict(name="hybrid", **options)]
            method = build(learned, terms, {"teacher": Teacher(plain, held)})
            given = {**params, "frozen": method.frozen}
            _, (metrics, _) = quick_jit(method.loss)(given, batch, jax.random.key(2), {"times": ()})
            values[learned, name] = float(metrics["hybrid"])
        assert values[learned, "same"] < 1e-8 < 1e-4 < values[learned, "noise"]
    assert values[True, "other"] > values[True, "noise"]
    assert values[False, "other"] == pytest.approx(values[False, "noise"])
    with pytest.raises(UsageError, match="method.terms.hybrid: got .-1"):
        hybrid(spec=SPEC, networks={}, noise=-1)
    with pytest.raises(UsageError, match="config.networks.*teacher"):
        hybrid(spec=SPEC, networks={})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kernel=4), "model.kernel: got 4; allowed: odd"),
        (dict(lowering="fast"), "model.lowering: got 'fast'"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_usage_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
