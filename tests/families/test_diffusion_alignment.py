"""Alignment (REPA): the loss and its floor, gradients, its end, features from the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.terms.alignment import alignment
from jaxgen.method import Column, Encoder, Spec
from jaxgen.nn.dit import DiT
from jaxgen.run.setup import TOP, set_up
from jaxgen.training.ema import Averages
from tests.nn_kit import quick_jit, random_like

SPEC = Spec((8, 8, 1), 3, columns={"feature": Column((4, 6), "float32")})
NET = DiT(num_classes=3, out_channels=1, patch=4, width=16, depth=2, heads=2)
BATCH = {
    "image": jax.random.normal(jax.random.key(0), (8, 8, 8, 1)),
    "label": jnp.arange(8) % 3,
    "index": jnp.arange(8),
    "microbatch": jnp.int32(0),
    "seen": jnp.full(8, 320.0),
}
# Of each patch its mean and deviation, times arrays that would be an encoder's.
ENCODER = Encoder(
    lambda params, x: (
        jnp.stack([x.reshape(-1, 4, 16).mean(-1), x.reshape(-1, 4, 16).std(-1)], -1) @ params
    ),
    jnp.eye(2, 6) + 0.1,
)


def method(**options):
    term = alignment(SPEC, **{"layer": 1, "width": 12, "encoder": ENCODER, **options})
    return denoising(SPEC, NET, optax.sgd(0.1), Averages((10,)), terms=[term])


def value(m, params, batch=BATCH):
    """(loss, metrics) at parameters that are all alive, frozen arrays with them."""
    return m.loss(params, batch, jax.random.key(1), {"times": ()})


def live(m):
    return random_like(jax.eval_shape(m.init, jax.random.key(0)).params, 0.3)


def loss_of(m, params, batch=BATCH, jit=quick_jit):
    run = jit(lambda params, batch: value(m, params, batch))
    total, (metrics, _) = run({**params, "frozen": m.frozen}, batch)
    return total, metrics


def test_it_is_added_and_does_not_know_the_encoders_scale():
    m, plain = method(), denoising(SPEC, NET, optax.sgd(0.1), Averages((10,)))
    params = live(m)
    total, metrics = loss_of(m, params)
    alone, _ = loss_of(plain, params)
    np.testing.assert_allclose(total, alone + metrics["alignment"], rtol=1e-5)
    assert 0 < metrics["alignment"] < 1
    scaled = Encoder(ENCODER.apply, 7.0 * ENCODER.params)
    np.testing.assert_allclose(loss_of(method(encoder=scaled), params)[0], total, rtol=1e-5)
    half = loss_of(method(weight=0.25), params)[1]["alignment"]
    np.testing.assert_allclose(2 * half, metrics["alignment"], rtol=1e-5)


def test_at_equality_it_is_zero():
    """Features that are the projection itself."""
    m = method()
    params = live(m)
    projected = []
    spy = Encoder(lambda p, x: p, None)
    term = alignment(SPEC, layer=1, width=12, encoder=ENCODER)
    noised = denoising(SPEC, NET, optax.sgd(0.1), Averages((10,)), terms=[
        type(term)(name="alignment", taps=(1,), init=term.init,
                   of=lambda n, p, f: projected.append(n.taps[1]) or jnp.zeros(8))
    ])  # fmt: skip
    loss_of(noised, params, jit=lambda fn: fn)
    h = projected[0].astype(jnp.float32)
    layers = params["alignment"]
    for number, name in enumerate(("layers_0", "layers_2", "layers_4")):
        h = h @ layers[name]["kernel"] + layers[name]["bias"]
        h = jax.nn.silu(h) if number < 2 else h
    spy = Encoder(lambda p, x: h[: len(x)])
    assert abs(float(loss_of(method(encoder=spy), params)[1]["alignment"])) < 1e-6


def test_gradients_reach_the_projector_and_the_layers_below_and_not_the_encoder():
    m = method()
    params = {**live(m), "frozen": m.frozen}

    def only(params):
        return value(m, params)[1][0]["alignment"]

    grads = quick_jit(jax.grad(only))(params)
    assert all((a == 0).all() for a in jax.tree.leaves(grads["frozen"]))
    assert any((a != 0).any() for a in jax.tree.leaves(grads["alignment"]))
    blocks = jax.tree.leaves(grads["net"]["blocks"])
    assert any((a[0] != 0).any() for a in blocks) and all((a[1] == 0).all() for a in blocks)
    state = quick_jit(m.init)(jax.random.key(0))
    state, _ = quick_jit(m.update)(state, BATCH, jax.random.key(1), m.frozen)
    assert set(state.params) == {"net", "alignment"}


def test_it_ends_at_a_number_of_images():
    m = method(until=320)
    params = live(m)
    assert loss_of(m, params)[1]["alignment"] == 0
    before = {**BATCH, "seen": jnp.full(8, 319.0)}
    assert loss_of(m, params, before)[1]["alignment"] > 0


def test_features_computed_with_the_data_are_those_of_the_step():
    params = live(method())
    columns = {**BATCH, "feature": ENCODER(BATCH["image"])}
    found, given = loss_of(method(), params)[0], loss_of(
        method(encoder=None, column="feature"), params, columns
    )[0]  # fmt: skip
    np.testing.assert_allclose(found, given, rtol=1e-6)


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (dict(layer=1), "an encoder or a column"),
        (dict(layer=1, encoder="flat", column="feature"), "an encoder or a column"),
        (dict(layer=1, column="features"), "which have none"),
        (dict(layer=9, encoder="flat"), "9"),
        (dict(layer=1, encoder="flt"), "flat"),
    ],
)
def test_bad_input_is_named(term, words):
    config = configs.load("tests/tiny.py")
    configs.override(config, ["method.terms=" + repr([dict(name="alignment", **term)])], TOP)
    with pytest.raises(UsageError, match=words):
        set_up(config)
