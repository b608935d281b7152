"""Gated PixelCNN and PixelCNN++: causality by Jacobian, no blind spot, exact probabilities."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.autoregressive.heads import softmax
from jaxgen.families.autoregressive.sampler import build_sampler
from jaxgen.method import Spec
from jaxgen.nn.convolution import convolve
from jaxgen.nn.pixelcnn import GatedPixelCNN, channel_mask, imagenet
from jaxgen.nn.pixelcnnpp import Conv, PixelCNNpp, Upsample, cifar10
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import quick_jit

GATED = dict(depth=3, width=24, kernel=3, first=5, hidden=48)
PLUS = dict(width=4, blocks=1, resolutions=2, dropout=0.0)
NETS = {
    "gated": GatedPixelCNN(2, 5, (4, 5, 1), **GATED),
    "gated colour": GatedPixelCNN(2, 5, (3, 4, 3), **GATED),
    "plus": PixelCNNpp(2, 5, (5, 6, 1), **PLUS),
    "plus colour": PixelCNNpp(2, 5, (4, 4, 3), **PLUS, outputs=30),
    "plus deep": PixelCNNpp(2, 5, (7, 5), **{**PLUS, "resolutions": 3}),
}


def live(module):
    """Random parameters that leave no group of ReLUs dead; tokens and labels for them."""
    scale = 0.3 if isinstance(module, GatedPixelCNN) else 0.6
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 5, (3, math.prod(module.shape))), jnp.int32)
    labels = jnp.array([0, 1, 2], jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, labels)["params"]
    params = jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)
    return params, tokens, labels


def reach(module, params, tokens):
    """[rows, N]: the largest derivative of each row of the output by each token."""

    def out(values):
        return module.apply({"params": params}, values[None], jnp.zeros(1, jnp.int32))[0]

    jacobian = quick_jit(jax.jacrev(out))(tokens[0].astype(jnp.float32))
    return np.abs(np.asarray(jacobian)).max(1)


@pytest.mark.parametrize("name", NETS)
def test_a_row_depends_on_everything_before_it_and_on_nothing_else(name):
    module = NETS[name]
    params, tokens, _ = live(module)
    found = reach(module, params, tokens)
    before = np.arange(found.shape[1]) < module.group * np.arange(found.shape[0])[:, None]
    assert (found[~before] == 0).all(), "a row saw itself or what comes later"
    assert (found[before] > 0).all(), f"a blind spot: {np.argwhere(before & (found == 0))[:3]}"


def test_without_the_masks_of_channels_the_jacobian_says_so(monkeypatch):
    ones = lambda a, b, *_, **__: np.ones((a, b), np.float32)
    monkeypatch.setattr("jaxgen.nn.pixelcnn.channel_mask", ones)
    module = NETS["gated colour"].clone()
    params, tokens, _ = live(module)
    found = reach(module, params, tokens)
    assert (np.diag(found) > 0).any() and (np.triu(found, 3) == 0).all()


def test_masks_of_channels_by_hand():
    strict = channel_mask(3, 6, 3, strict=True)
    np.testing.assert_array_equal(strict, [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0] * 6])
    np.testing.assert_array_equal(channel_mask(2, 2, 2, strict=False), [[1, 1], [0, 1]])


@pytest.mark.parametrize("name", NETS)
def test_labels_matter_and_out_of_range_is_nan(name):
    module = NETS[name]
    params, tokens, labels = live(module)
    apply = quick_jit(module.apply)
    a = apply({"params": params}, tokens, labels)
    assert a.shape[:2] == (3, math.prod(module.shape) // module.group) and a.dtype == jnp.float32
    b = apply({"params": params}, tokens, (labels + 1) % 3)
    assert (np.abs(a - b).max(2) > 0).all()
    assert jnp.isnan(apply({"params": params}, tokens, labels + 3)).all()


@pytest.mark.parametrize("name", ["gated colour", "plus deep"])
def test_both_lowerings_agree(name):
    module = NETS[name]
    params, tokens, labels = live(module)
    a, b = (
        quick_jit(module.clone(lowering=low).apply)({"params": params}, tokens, labels)
        for low in ("patches", "direct")
    )
    np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()))
    x, kernel = jnp.ones((2, 6, 7, 3)), jnp.ones((2, 3, 3, 4))
    for stride in (1, 2):
        pad = ((1, 0), (1, 1))
        got = [
            convolve(x, kernel, pad=pad, stride=stride, lowering=n) for n in ("patches", "direct")
        ]
        np.testing.assert_allclose(*got, atol=1e-5)
    with pytest.raises(UsageError, match="model.lowering.*patches"):
        convolve(x, kernel, pad=pad, lowering="patch")


@pytest.mark.parametrize("sides", [True, False])
def test_upsampling_is_the_transposed_convolution_cut(sides):
    kernel = (2, 3) if sides else (2, 2)
    module = Upsample(3, kernel, sides)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    v = variables["params"]["direction"]
    weights = v / jnp.sqrt((v**2).sum((0, 1, 2)))
    # lax.conv_transpose correlates, so the kernel is turned.
    full = jax.lax.conv_transpose(
        x, weights[::-1, ::-1], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    edge = 1 if sides else 0
    np.testing.assert_allclose(module.apply(variables, x), full[:, :6, edge : edge + 8], atol=1e-5)


def test_the_row_by_row_decoder_gives_the_rows_of_the_whole():
    for name in ("gated", "gated colour"):
        module = NETS[name]
        params, tokens, labels = live(module)
        whole = quick_jit(module.apply)({"params": params}, tokens, labels)

        @quick_jit
        def rows(tokens, module=module, params=params, labels=labels):
            memory, step = module.decoder(params, labels)

            def body(memory, i):
                # What is not drawn yet is 0 in a sampler.
                drawn = jnp.where(jnp.arange(tokens.shape[1]) < i, tokens, 0)
                return step(memory, drawn, i)[::-1]

            return jax.lax.scan(body, memory, jnp.arange(tokens.shape[1]))[1].swapaxes(0, 1)

        np.testing.assert_allclose(rows(tokens), whole, atol=1e-5 * float(np.abs(whole).max()))


def built(module, spec, **options):
    return autoregressive(spec, module, optax.adam(1e-2), Averages((1000,)), **options)


def keys(count):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))


@pytest.mark.parametrize(
    ("module", "head"),
    [
        (GatedPixelCNN(1, 2, (3, 3, 1), depth=2, width=6, kernel=3, first=3), "softmax"),
        (GatedPixelCNN(1, 2, (3, 3), depth=2, width=6, kernel=3, first=3, embed=2), "softmax"),
        (PixelCNNpp(1, 2, (3, 3, 1), **PLUS), "softmax"),
        (PixelCNNpp(1, 2, (1, 3, 3), **PLUS), dict(name="logistic_mixture", components=2)),
        (PixelCNNpp(1, 2, (3, 3, 1), **PLUS), dict(name="logistic_mixture", components=2)),
    ],
    ids=["gated", "gated embed", "plus softmax", "plus colour", "plus"],
)
def test_probabilities_sum_to_one_and_samples_follow_them(module, head):
    spec = Spec(module.shape, 1, levels=2)
    parts = built(module, spec, head=head)
    shapes = jax.eval_shape(parts.init, jax.random.key(0)).params
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(1.2 * rng.normal(size=a.shape), a.dtype), shapes)
    x = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=9)), jnp.float32)
    x = x.reshape(-1, *module.shape)
    p = np.exp(quick_jit(parts.log_prob())(params, x, jnp.zeros(512, jnp.int32), keys(512)))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    count = 4000
    drawn = quick_jit(parts.sampler().fn)(params, keys(count), jnp.zeros(count, jnp.int32))
    code = ((np.asarray(drawn).reshape(count, 9) > 0) * 2 ** np.arange(8, -1, -1)).sum(1)
    off = np.abs(np.bincount(code, minlength=512) / count - p).sum() / 2
    floor = np.sqrt(p * (1 - p) / count).sum() / 2
    assert off < 1.25 * floor
    assert np.abs(1 / 512 - p).sum() / 2 > 2 * floor, "the law is too flat to tell anything"


def test_samples_depend_on_their_key_and_label_alone():
    spec = Spec((3, 3, 1), 3, levels=5)
    module = GatedPixelCNN(3, 5, (3, 3, 1), **GATED)
    parts = built(module, spec)
    shapes = jax.eval_shape(parts.init, jax.random.key(0)).params
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.7 * rng.normal(size=a.shape), a.dtype), shapes)
    made = parts.sampler(guidance=2.0)
    assert made.calls == 18
    check_sampler(jax.jit(made.fn), params, jnp.array([0, 1, 2, 1]))
    whole = build_sampler(
        module.clone(outputs=5), softmax(levels=5, group=1), spec, guidance=2.0, cached=False
    )
    labels = jnp.arange(8) % 3
    np.testing.assert_array_equal(
        jax.jit(whole.fn)(params, keys(8), labels), jax.jit(made.fn)(params, keys(8), labels)
    )


def test_dropout_is_live_and_weights_are_normalised():
    for name in ("gated", "plus"):
        module = NETS[name].clone(dropout=0.5)
        params, tokens, labels = live(module)
        a = quick_jit(module.apply)({"params": params}, tokens, labels)
        keys = {"dropout": jax.random.key(0)}
        train = quick_jit(functools.partial(module.apply, train=True))
        b = train({"params": params}, tokens, labels, rngs=keys)
        assert np.abs(a - b).max() > 1e-3
    conv = Conv(3, (2, 2), False)
    x = jnp.ones((1, 4, 4, 2))
    v = conv.init(jax.random.key(0), x)["params"]
    scaled = {**v, "direction": 7 * v["direction"]}
    np.testing.assert_allclose(
        conv.apply({"params": v}, x), conv.apply({"params": scaled}, x), rtol=1e-5
    )


def test_the_papers_sizes_build():
    def count(module):
        tokens, labels = jnp.zeros((1, math.prod(module.shape)), jnp.int32), jnp.zeros(1, jnp.int32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, labels)["params"]
        return sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)), shapes

    # One class, so that labels count little; the sum by hand of a layer of 384 features, 5x5.
    found, shapes = count(imagenet(num_classes=1, levels=256, shape=(32, 32, 3)))
    p = 384
    layer = (3 * 5 + 3) * p * 2 * p + 4 * p * p + p * p + 7 * p
    tree = shapes["layer_7"]
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(tree)) == layer
    found, _ = count(cifar10(num_classes=1, levels=256, shape=(32, 32, 3)).clone(outputs=100))
    f = 160
    first = lambda taps, ins, outs: taps * ins * outs + 2 * outs
    u = first(6, 2 * f, f) + first(6, 2 * f, 2 * f)
    l = first(4, 2 * f, f) + first(4, 2 * f, 2 * f)  # noqa: E741
    side, two = first(1, 2 * f, f), first(1, 4 * f, f)
    down = 15 * (u + l + side)
    up = 17 * (u + side + l + two)
    moves = 2 * 2 * (first(6, f, f) + first(4, f, f))
    ends = first(6, 4, f) + first(3, 4, f) + first(2, 4, f) + first(1, f, 100)
    labels = 2 * 64 * 2 * f
    assert found == down + up + moves + ends + labels


def test_bad_options_name_themselves():
    tokens, labels = jnp.zeros((1, 27), jnp.int32), jnp.zeros(1, jnp.int32)
    for module, message in (
        (GatedPixelCNN(1, 2, (3, 3, 3), width=16), "model.width: got 16.*3 channels"),
        (GatedPixelCNN(1, 2, (3, 3, 3), width=6, hidden=8), "model.hidden: got 8"),
        (GatedPixelCNN(1, 2, (3, 3, 3), width=6, kernel=4), "model.kernel: got 4"),
        (GatedPixelCNN(1, 2, (3, 3, 3), width=6, first=1), "model.first: got 1"),
        (GatedPixelCNN(1, 2, (3, 3, 3), width=6, depth=0), "model.depth: got 0"),
        (GatedPixelCNN(1, 2, (27,), width=6), "model.shape"),
        (PixelCNNpp(1, 2, (3, 3, 3), blocks=0), "model.blocks: got 0"),
        (PixelCNNpp(1, 2, (3, 3, 3), resolutions=0), "model.resolutions: got 0"),
        (PixelCNNpp(1, 2, (27,)), "model.shape"),
    ):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), tokens, labels)
    with pytest.raises(UsageError, match="method.head.*predicts 3"):
        built(PixelCNNpp(1, 2, (3, 3, 3)), Spec((3, 3, 3), 1, levels=2))
