"""TREAD: tokens on a route miss its layers and nothing else; training costs what is predicted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.tread import TREAD, kept_places
from jaxgen.run.setup import TOP, set_up, train_flops
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import abstract, inputs, live_variables, quick_jit

IMAGE = (8, 8, 2)
FIELDS = dict(num_classes=5, out_channels=2, depth=4, width=16, heads=2, patch=2)
NET = TREAD(**FIELDS, routes=((1, 3, 0.5),))
TRAINED = dict(train=True, rngs={"dropout": jax.random.key(7)})


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


@functools.cache
def program(net, taps):
    return quick_jit(functools.partial(net.apply, **TRAINED, taps=taps))


def trained(net, variables, taps=(1, 2, 3, 4)):
    return program(net, taps)(variables, *inputs(IMAGE, 4))


def spoilt(layers):
    """The variables with noise in the last kernel of some layers, from 0."""
    blocks = dict(variables()["params"]["blocks"])
    kernel = blocks["contract"]["kernel"]
    blocks["contract"] = {**blocks["contract"], "kernel": kernel.at[jnp.array(layers)].add(1.0)}
    return {"params": {**variables()["params"], "blocks": blocks}}


def test_without_training_and_without_shares_it_is_a_dit():
    dit, args = DiT(**FIELDS), inputs(IMAGE, 4)
    programs = [str(jax.make_jaxpr(net.apply)(variables(), *args)) for net in (NET, dit)]
    assert programs[0] == programs[1]
    nobody = NET.clone(routes=((0, 2, 0.0), (3, 4, 0.0)))
    want = quick_jit(dit.apply)(variables(), *args)
    np.testing.assert_allclose(trained(nobody, variables(), ()), want, rtol=1e-5, atol=1e-6)
    shapes = [jax.tree.map(jnp.shape, abstract(n, IMAGE)) for n in (NET, dit)]
    assert shapes[0] == shapes[1]


def test_tokens_on_a_route_miss_its_layers_and_all_others_do_not():
    """Layers 2 and 3 with other weights: half of each example's tokens are what they were."""
    _, plain = trained(NET, variables())
    _, moved = trained(NET, spoilt([1, 2]))
    same = np.asarray((plain[3] == moved[3]).all(-1))
    assert (same.sum(1) == 8).all() and len({tuple(row) for row in same}) > 1
    # They are as they were where the route began; the others are not.
    before = np.asarray((plain[3] == plain[1]).all(-1))
    np.testing.assert_array_equal(before, same)
    _, late = trained(NET, spoilt([3]))
    np.testing.assert_array_equal(late[3], plain[3])


def test_tokens_come_back_where_they_were():
    """Layers 2 to 4 that are the identity, as at initialisation: nothing moves."""
    blocks = dict(variables()["params"]["blocks"])
    blocks["modulation"] = jax.tree.map(lambda a: a.at[1:].set(0), blocks["modulation"])
    _, taps = trained(NET, {"params": {**variables()["params"], "blocks": blocks}})
    for k in (2, 3, 4):
        np.testing.assert_array_equal(taps[k], taps[1])


def test_places_are_drawn_evenly_and_for_each_example():
    kept = np.asarray(kept_places(jax.random.key(0), 4000, 8, 3))
    assert (np.diff(kept, axis=1) > 0).all()
    shares = np.bincount(kept.reshape(-1), minlength=8) / 4000
    # Three standard errors of a share of 3/8 among 4,000.
    np.testing.assert_allclose(shares, 3 / 8, atol=3 * (15 / 64 / 4000) ** 0.5)


def predicted(net, tokens, channels):
    """Forward multiply-adds in training, by hand."""
    w, patch = net.width, net.patch**2
    condition = 256 * w + w * w + net.depth * 6 * w * w + 2 * w * w
    ends = tokens * patch * w * (channels + net.out_channels)
    (first, last, share), *_ = net.routes or ((2, net.depth - 4, 0.5),)

    def layer(n):
        return n * (4 + 2 * net.mlp_ratio) * w * w + 2 * n * n * w

    kept = tokens - round(share * tokens)
    inside = last - first
    return condition + ends + (net.depth - inside) * layer(tokens) + inside * layer(kept)


@pytest.mark.parametrize("size", ["B/2", "XL/2"])
def test_training_costs_the_predicted_share(size):
    """Of the paper's route: 0.74 of DiT-B/2's multiply-adds, 0.60 of DiT-XL/2's."""
    net, shape = TREAD(1000, 8, size), (32, 32, 4)
    found = multiply_adds(net, shape, train=True)
    assert found == pytest.approx(predicted(net, 256, 4), rel=1e-6)
    whole = multiply_adds(net, shape)
    assert whole == multiply_adds(DiT(1000, 8, size), shape)
    assert found / whole == pytest.approx({"B/2": 0.744, "XL/2": 0.601}[size], abs=0.001)


def test_a_runs_operations_fall_by_the_share():
    """As `jaxgen plan` counts them."""

    def of(name, **more):
        loaded = configs.load("tests/tiny.py")
        net = dict(name=name, patch=2, width=16, depth=4, heads=2) | more
        configs.override(loaded, [f"model={net!r}"], TOP)
        return set_up(loaded, data=False)

    tread = of("tread.TREAD", routes=((1, 3, 0.75),))
    net = TREAD(10, 1, depth=4, width=16, heads=2, patch=2, routes=((1, 3, 0.75),))
    assert train_flops(tread) == pytest.approx(6 * predicted(net, 16, 1), rel=1e-6)
    assert train_flops(tread) < 0.75 * train_flops(of("dit.DiT"))


def test_it_trains_alike_on_a_mesh_and_every_parameter_has_a_gradient():
    def loss(variables, *args):
        return jnp.square(NET.apply(variables, *args, **TRAINED)).mean()

    def gradient(layout):
        with using(layout):
            return quick_jit(jax.value_and_grad(loss))(variables(), *inputs(IMAGE, 4))

    want, found = gradient(None), gradient(Layout(make_mesh(2, 1, 2, 2)))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), want, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(routes=((1, 1, 0.5),)), r"model.routes: got \(1, 1, 0.5\); allowed: \(a, b"),
        (dict(routes=((1, 5, 0.5),)), "model.routes.*b <= 4"),
        (dict(routes=((0, 2, 0.5), (1, 3, 0.5))), "model.routes.*2 <= a"),
        (dict(routes=((1, 3, 0.99),)), "model.routes.*leave one of 16 tokens"),
        (dict(routes=()), r"model.routes: got \(2, 0, 0.5\)"),
        (dict(rope=True), "model.rope: got True"),
    ],
    ids=str,
)
def test_routes_that_do_not_fit_are_usage_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
