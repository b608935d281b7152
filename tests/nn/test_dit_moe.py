"""DiT-MoE: experts against a loop over tokens, the paper's sizes, balance, experts on a mesh."""

from __future__ import annotations

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.terms.balance import balance
from jaxgen.mesh import Layout, using
from jaxgen.nn import placement
from jaxgen.nn.dit_moe import ROUTING, DiTMoE
from jaxgen.nn.experts import Experts
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit, random_like

IMAGE = (8, 8, 2)
NET = DiTMoE(5, 2, depth=2, width=16, heads=4, patch=2, experts=4, remat="none")
LATENTS = (32, 32, 4)

# Fei et al. 2024, abstract: "16.5B" parameters, which is G/2's. The others are what section 4.1's
# depths and widths come to with the experts of the authors' code: millions, in all and in use.
SIZES = {"S/2": (199, 72), "B/2": (796, 286), "XL/2": (4168, 1492), "G/2": (16503, 3181)}


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_their_parameters(size):
    net = DiTMoE(1000, 8, size)
    millions, used = SIZES[size]
    found = parameters(net, LATENTS)
    idle = (net.experts - net.chosen) * net.depth * 3 * net.width * 4 * net.width
    assert (round(found / 1e6), round((found - idle) / 1e6)) == (millions, used)


def test_a_token_costs_the_experts_that_it_is_given_to():
    """Two of twelve and two of four are the same work, but for the router's columns."""
    few, many = (DiTMoE(10, 3, depth=3, width=32, heads=2, experts=e) for e in (4, 12))
    gap = multiply_adds(many, (8, 8, 3)) - multiply_adds(few, (8, 8, 3))
    assert gap == 3 * 16 * 32 * 8
    one = few.clone(chosen=1)
    gap = multiply_adds(few, (8, 8, 3)) - multiply_adds(one, (8, 8, 3))
    assert gap == 3 * 16 * 3 * 32 * 128


def mlp(params, e, row, gated):
    own = {name: {k: a[e] for k, a in layer.items()} for name, layer in params.items()}
    if gated:
        h = nn.silu(row @ own["gate"]["kernel"]) * (row @ own["value"]["kernel"])
        return h @ own["contract"]["kernel"]
    h = nn.gelu(row @ own["expand"]["kernel"] + own["expand"]["bias"])
    return h @ own["contract"]["kernel"] + own["contract"]["bias"]


@pytest.mark.parametrize("gated", [True, False])
def test_dispatch_is_a_loop_over_tokens(gated):
    """Also where only some choices are meant, of which there are so many at most."""
    rng = np.random.default_rng(0)
    experts = Experts(3, 8, gated, jnp.float32)
    x = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    expert = jnp.asarray([rng.permutation(3)[:2] for _ in range(6)])
    weight = jnp.asarray(rng.random((6, 2)), jnp.float32)
    taken = jnp.asarray(rng.random((6, 2)) < 0.6)
    params = random_like(jax.eval_shape(experts.init, jax.random.key(0), x, expert, weight), 0.5)
    most = int(taken.sum())
    assert 0 < most < 12
    for given, options in ((jnp.ones((6, 2), bool), {}), (taken, dict(taken=taken, most=most))):
        found = jax.jit(functools.partial(experts.apply, most=options.pop("most", None)))(
            params, x, expert, weight, **options
        )
        for t in range(6):
            parts = [
                weight[t, k] * mlp(params["params"], int(expert[t, k]), x[t], gated)
                for k in range(2)
                if given[t, k]
            ]
            want = sum(parts) if parts else jnp.zeros(5)
            np.testing.assert_allclose(found[t], want, rtol=1e-4, atol=1e-5)


@functools.cache
def forward():
    return quick_jit(NET.apply)


def test_an_image_depends_on_itself_alone_and_dispatch_is_the_same_again():
    args = inputs(IMAGE, 4)
    testing.check_alone(forward(), variables(), *args, rtol=2e-6)
    out = forward()(variables(), *args)
    np.testing.assert_array_equal(out, forward()(variables(), *args))


def test_the_tap_has_each_images_shares_of_each_layer():
    """[B, depth, 2, experts]: choices and probabilities, of each image by itself."""
    args = inputs(IMAGE, 3)
    apply = quick_jit(functools.partial(NET.apply, taps=(ROUTING,)))
    found = apply(variables(), *args)[1][ROUTING]
    assert found.shape == (3, 2, 2, 4)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    alone = apply(variables(), *(a[1:2] for a in args))[1][ROUTING]
    np.testing.assert_allclose(found[1], alone[0], atol=1e-6)


def noised(chosen, p):
    """What the term sees of a network of one layer, [B, 1, 2, experts]."""
    return types.SimpleNamespace(taps={ROUTING: jnp.stack([chosen, p], axis=1)[:, None]})


def test_balance_is_least_where_experts_share_alike():
    """The weight there; E / k times it where the same k of E get all."""
    of, even = balance(weight=0.01).of, jnp.full((3, 8), 1 / 8)
    np.testing.assert_allclose(of(noised(even, even), None, None), 0.01, rtol=1e-6)
    two = jnp.zeros((3, 8)).at[:, :2].set(0.5)
    np.testing.assert_allclose(of(noised(two, two), None, None), 0.04, rtol=1e-6)
    # Images that each use other experts are balanced as a batch.
    apart = jnp.eye(8)
    np.testing.assert_allclose(of(noised(apart, apart), None, None), 0.01, rtol=1e-6)
    with pytest.raises(UsageError, match="method.terms.balance.weight: got -1"):
        balance(weight=-1)


def gradient(layout):
    """Loss, routing and gradient over examples of every label."""
    args = inputs(IMAGE, 4)

    def loss(variables):
        out, taps = NET.apply(variables, *args, taps=(ROUTING,))
        return jnp.square(out - 1).mean() + taps[ROUTING][:, :, 1, 0].mean(), taps[ROUTING]

    with using(layout):
        return quick_jit(jax.value_and_grad(loss, has_aux=True))(variables())


def test_experts_on_a_mesh_are_those_on_one_device(monkeypatch):
    """Experts lie along `tensor`, whole; tokens along `sequence`, 16 on 2 devices."""
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    mesh, name = make_mesh(1, 2, 2, 2), "net.blocks.experts.value.kernel"
    where = placement.placement(name, (2, 4, 16, 64), mesh)
    assert tuple(where) == (None, "tensor", "fsdp", None)
    want, found = gradient(None), gradient(Layout(mesh))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want)
    shares = np.asarray(want[0][1]).sum(-1)
    np.testing.assert_allclose(shares, 1.0, rtol=1e-5)


def test_other_numbers_of_devices_than_divide_the_experts_are_usage_errors():
    net = NET.clone(experts=3)
    with using(Layout(make_mesh(1, 1, 4, 2))), pytest.raises(UsageError, match="divisors of exp"):
        jax.eval_shape(net.init_with_output, jax.random.key(0), *inputs(IMAGE, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(chosen=5), "model.chosen: got 5; allowed: 1 to 4"),
        (dict(chosen=0), "model.chosen: got 0"),
        (dict(shared=-1), "model.shared: got -1"),
        (dict(size="H/2"), "model.size: got 'H/2'.*'?G/2"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_usage_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
