"""Conditions through a method: columns told and dropped together, guidance, samplers, coherence."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core.denoiser import Network, together
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.descriptions.representation import representation
from jaxgen.families.diffusion.guidance.cads import cads
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec, drop_labels, no_label
from jaxgen.method.columns import Column
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.mlp import MLP
from jaxgen.nn.unet import ADM, NCSNpp
from jaxgen.nn.uvit import UViT
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import live_params, live_variables, quick_jit

COLUMNS = {"side": Column((), "float32"), "group": Column((), "int32")}
SPEC = Spec((2,), 2, levels=None, columns=COLUMNS)
CONDITIONS = (("side", "number"), ("group", "label", 3))
IMAGE = (2, 2, 1)
SMALL_UNET = dict(channels=8, multipliers=(1,), blocks=1, attention_sizes=())
NETWORKS = {
    "ncsnpp": NCSNpp(2, 1, **SMALL_UNET),
    "adm": ADM(2, 1, **SMALL_UNET, head_channels=8),
    "edm2": EDM2(2, 1, **SMALL_UNET, head_channels=8),
    "uvit": UViT(2, 1, depth=3, width=16, heads=2, patch=2),
    "mlp": MLP(2, 1, width=16, depth=1),
}


def method(**options):
    model = MLP(2, 2, width=32, depth=1, conditions=CONDITIONS)
    return denoising(SPEC, model, optax.adam(1e-2), Averages((100,)), **options)


def batch_of(key, size=128):
    """x = 2 side (1, 1) + label (0, 1), and noise; half of the time `side` is 1, else -1."""
    side, label, group, noise = jax.random.split(key, 4)
    side = jnp.where(jax.random.bernoulli(side, shape=(size,)), 1.0, -1.0)
    label = jax.random.bernoulli(label, shape=(size,)).astype(jnp.int32)
    image = 2 * side[:, None] + label[:, None] * jnp.array([0.0, 1.0])
    image = image + 0.1 * jax.random.normal(noise, (size, 2))
    group = jax.random.randint(group, (size,), 0, 3)
    return {"image": image, "label": label, "side": side, "group": group}


@pytest.fixture(scope="module")
def trained():
    made = method(label_dropout=0.2)

    def run(key):
        def body(state, number):
            own = jax.random.fold_in(key, number)
            return made.update(state, batch_of(own), own)[0], None

        return jax.lax.scan(body, made.init(key), jnp.arange(400))[0].params

    return made, jax.jit(run)(jax.random.key(0))


def test_samples_have_what_was_told_by_columns_and_labels(trained):
    """Any of it may be left out, and what is told of the rest holds."""
    made, params = trained
    keys = jax.random.split(jax.random.key(1), 200)
    label, side = jnp.arange(200, dtype=jnp.int32) % 2, jnp.where(jnp.arange(200) < 100, 1.0, -1.0)
    run = made.sampler(solver="euler", steps=12).fn
    both = np.asarray(run(params, keys, {"label": label, "side": side}))
    np.testing.assert_allclose(both[:, 0], 2 * side, atol=0.9)
    gap = both[:, 1] - both[:, 0]
    assert abs(gap[label == 1].mean() - 1) < 0.15 and abs(gap[label == 0].mean()) < 0.15
    # None of any is the marginal: both sides about as often (four standard errors: .14).
    free = np.asarray(run(params, keys, no_label({"label": label, "side": side}, 2)))
    assert abs((free[:, 0] > 0).mean() - 0.5) < 0.2


def test_samplers_guidance_and_chains_take_trees(trained):
    made, params = trained
    told = {"label": jnp.array([0, 1, 2, 0]), "side": jnp.array([1.0, -1.0, jnp.nan, 1.0])}
    keys = jax.random.split(jax.random.key(2), 4)
    guided = made.sampler(solver="euler", steps=4, guidance=2.0)
    out = guided(params, keys, told)
    assert guided.calls == 8 and np.isfinite(out).all()
    swapped = jax.tree.map(lambda a: a[::-1], told)
    np.testing.assert_allclose(guided(params, keys[::-1], swapped), out[::-1], atol=1e-5)
    chain = guided.chain(params, {"label": jnp.int32(1), "side": jnp.float32(-1)})
    alone = jax.jit(chain.run)(keys)
    same = guided(params, keys, {"label": jnp.full(4, 1), "side": jnp.full(4, -1.0)})
    np.testing.assert_allclose(alone, same, atol=1e-5)
    check_sampler(guided.fn, params, told["label"], atol=1e-5)


def test_all_conditions_are_dropped_by_one_draw():
    keys = jax.random.split(jax.random.key(3), 2000)
    told = {"label": jnp.zeros(2000, jnp.int32), "side": jnp.ones(2000), "set": jnp.ones((2000, 2))}
    found = jax.tree.map(np.asarray, drop_labels(keys, told, 0.3, 2))
    dropped = found["label"] == -1
    np.testing.assert_array_equal(dropped, np.isnan(found["side"]))
    np.testing.assert_array_equal(dropped, np.isnan(found["set"]).all(1))
    plain = np.asarray(drop_labels(keys, told["label"], 0.3, 2))
    np.testing.assert_array_equal(dropped, plain == 2)


def test_a_column_that_the_data_lack_is_an_error():
    made, batch = method(), batch_of(jax.random.key(0), 4)
    del batch["side"]
    state = jax.eval_shape(made.init, jax.random.key(0))
    with pytest.raises(UsageError, match="model.conditions: got 'side'; allowed: .*group"):
        jax.eval_shape(made.update, state, batch, jax.random.key(1))


def test_a_network_that_declares_nothing_cannot_be_told_more():
    class Own(nn.Module):
        num_classes: int

    with pytest.raises(UsageError, match="a network with `conditions`"):
        denoising(SPEC, Own(2), optax.adam(1e-2), Averages((100,)), coherence=2)
    with pytest.raises(UsageError, match="a network with `conditions`"):
        Network(Own(2), linear(), "velocity").denoiser({}, None).recondition(jnp.sin)


def test_one_network_told_several_things_is_one_batch():
    sizes = []

    class Spy:
        conditions = (("w", "number"),)

        def apply(self, params, x, noise, told, **_):
            sizes.append(x.shape[0])
            y = told.told if hasattr(told, "told") else told
            return x * (y["w"] if isinstance(y, dict) else y)[:, None]

    network, params = Network(Spy(), linear(), "velocity"), {}
    x, t = jnp.ones((3, 2)), jnp.float32(0.5)
    one, two = (network.denoiser(params, {"w": jnp.arange(3.0) + k}) for k in (0, 5))
    both, _ = together([one, two], None, x, t, ((), ()))
    assert sizes == [6]
    for found, alone in zip(both, (one, two), strict=True):
        np.testing.assert_array_equal(found.x0, alone(None, x, t)[0].x0)
    # What a change holds is of one batch, and a label is no mapping: those are called by turns.
    sizes.clear()
    together([one, one.recondition(lambda y: y)], None, x, t, ((), ()))
    together([one, network.denoiser(params, jnp.arange(3))], None, x, t, ((), ()))
    assert sizes == [3] * 4


def test_a_network_may_be_told_a_number_that_is_always_the_same(trained):
    """What a student of guided samples is: labels, and a weight that its sampler holds fixed."""
    model = MLP(2, 2, width=32, depth=1, conditions=CONDITIONS)
    net, x, t = trained[1]["net"], jnp.ones((3, 2)), jnp.float32(0.5)
    labels, side = jnp.array([0, 1, 2]), jnp.full(3, 0.7)
    plain = Network(model, linear(), "velocity")
    fixed = dataclasses.replace(plain, told=lambda labels: {"label": labels, "side": side})
    want = plain.predict(net, x, t, {"label": labels, "side": side})
    np.testing.assert_array_equal(fixed.predict(net, x, t, labels).x0, want.x0)
    assert jnp.abs(want.x0 - plain.predict(net, x, t, labels).x0).max() > 0.1


def moments(x: jax.Array) -> jax.Array:
    return jnp.stack([x.mean((1, 2, 3)), jnp.square(x).mean((1, 2, 3))], axis=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_any_network_is_told_can_be_changed(name):
    """One label's embedding in every place is that label; CADS' noise is seen by all."""
    network = Network(NETWORKS[name], linear(), "velocity")
    keys, t = jax.random.split(jax.random.key(4), 4), jnp.float32(0.8)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(5), IMAGE), (4, *IMAGE))
    params = live_variables(network.model, IMAGE, 0.4)["params"]
    plain = network.denoiser(params, jnp.array([0, 1, 2, 0]))
    swapped = plain.recondition(lambda y: jnp.broadcast_to(y[1:2], y.shape))
    noisy = cads(plain, low=0.5, high=1.0, scale=2.0, mix=0.0)
    call = quick_jit(lambda: [d(keys, x, t)[0].x0 for d in (plain, swapped, noisy)])
    own, same, moved = (np.asarray(a).reshape(4, -1) for a in call())
    np.testing.assert_allclose(same, np.broadcast_to(own[1], own.shape), atol=1e-5)
    assert (np.abs(own - same).max(1) > 1e-3)[[0, 2, 3]].all()
    assert (np.abs(own - moved).max(1) > 1e-3).all()


@pytest.mark.parametrize("name", ["ncsnpp", "edm2"])
def test_rcg_and_cads_sample_from_any_network(name):
    """RCG draws a representation for each image, which the network is told and CADS anneals."""
    spec = Spec(IMAGE, 2, levels=None)
    describe = representation(spec, encoder=moments, width=8, depth=1, steps=2)
    made = denoising(spec, NETWORKS[name], optax.sgd(0.1), Averages((10,)), describe=describe)
    params = live_params(made, 0.4)
    sections = [dict(name="cfg.cfg", weight=2.0), dict(name="cads.cads", low=0.1, high=0.9)]
    sampler = made.sampler(solver="euler", steps=3, guidance=sections)
    assert sampler.calls == 6 + describe.calls
    keys, labels = jax.random.split(jax.random.key(6), 3), jnp.zeros(3, jnp.int32)
    run = quick_jit(sampler.fn)
    other = {**params, "describe": jax.tree.map(jnp.zeros_like, params["describe"])}
    out, moved = np.asarray(run(params, keys, labels)), np.asarray(run(other, keys, labels))
    np.testing.assert_array_equal(run(params, keys, labels), out)  # the same is the same
    assert np.isfinite(out).all() and (np.abs(out - moved).max((1, 2, 3)) > 1e-4).all()
