"""StyleGAN2's networks: the filter against scipy, modulation against kernels written out, sizes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from jaxgen.errors import UsageError
from jaxgen.nn import resample
from jaxgen.nn.resample import FIR, upfirdn
from jaxgen.nn.stylegan2 import (
    LAYOUT,
    Conv,
    Discriminator,
    Generator,
    deviation,
)

KEY = jax.random.key(0)
SMALL = dict(base=64, most=8, latent=6, style=8, depth=2)


def randomised(tree, key=KEY):
    """The arrays, each with noise on it: at first the strengths of noise are 0."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return form.unflatten(
        [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def small():
    generator = Generator((16, 16, 1), 3, **SMALL)
    z = jax.random.normal(KEY, (4, generator.latents()))
    return generator, randomised(jax.jit(generator.init)(KEY, z, jnp.zeros(4, jnp.int32))), z


@pytest.mark.parametrize(
    ("up", "down", "pad"), [(1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (3, 2, (4, 0))]
)
def test_the_filter_is_that_of_signal_processing(up, down, pad):
    taps = (0.1, 0.5, 0.7, -0.2)
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3))
    with jax.enable_x64(True):
        ours = np.asarray(upfirdn(jnp.asarray(x), taps, up, down, pad))
    want = x
    for axis in (1, 2):
        # Whole, the rows at the edges cut to what the padding leaves, then one of `down`.
        want = signal.upfirdn(np.array(taps), want, up, axis=axis)
        length = up * x.shape[axis] + sum(pad) - len(taps) + 1
        edges = [(0, 0)] * 4
        edges[axis] = (0, up - 1)
        want = np.pad(want, edges)
        first = len(taps) - 1 - pad[0]
        edges[axis] = (max(-first, 0), max(first + length - want.shape[axis], 0))
        want = np.pad(want, edges).take(np.arange(length) + max(first, 0), axis)
        want = want.take(np.arange(0, length, down), axis)
    np.testing.assert_allclose(ours, want, atol=1e-12)


def test_doubling_is_that_of_the_other_networks():
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    ours = upfirdn(x, tuple(2 * tap for tap in FIR), up=2, pad=(2, 1))
    np.testing.assert_allclose(ours, resample.double(x, "fir"), atol=1e-6)
    np.testing.assert_allclose(
        upfirdn(x, FIR, down=2, pad=(1, 1)), resample.halve(x, "fir"), atol=1e-6
    )


@pytest.mark.parametrize("up", [False, True])
def test_modulation_is_a_kernel_of_each_example(up):
    """Equations 1 to 3 with the kernels written out, one convolution an example."""
    conv = Conv(5, up=up)
    x, style = jax.random.normal(KEY, (3, 4, 4, 6)), jax.random.normal(KEY, (3, 2))
    params = randomised(conv.init(KEY, x, style)["params"])
    kernel = params["kernel"] / np.sqrt(9 * 6)
    scale = style @ params["style"]["kernel"] / np.sqrt(2) + params["style"]["bias"]
    for n in range(3):
        own = kernel * scale[n][:, None]
        own = own / jnp.sqrt((own**2).sum((0, 1, 2)) + 1e-8)
        edge = 2 if up else 1
        y = jax.lax.conv_general_dilated(
            x[n : n + 1], own, (1, 1), [(edge, edge)] * 2, lhs_dilation=(1 + up,) * 2,
            dimension_numbers=LAYOUT,
        )  # fmt: skip
        y = upfirdn(y, tuple(2 * tap for tap in FIR), pad=(1, 1)) if up else y
        ours = conv.apply({"params": params}, x[n : n + 1], style[n : n + 1])
        np.testing.assert_allclose(ours, y + params["bias"], atol=2e-5)


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_outputs_have_unit_variance_whatever_the_style(scale):
    """Of 16 x 14^2 x 32 outputs that are 0 to 1: without demodulation the scale shows."""
    x = jax.random.normal(KEY, (16, 16, 16, 64))
    style = scale * jax.random.normal(jax.random.key(1), (16, 8))

    def spread(demodulate):
        conv = Conv(32, demodulate=demodulate)
        return conv.apply(conv.init(KEY, x, style), x, style)[:, 1:-1, 1:-1].std()

    np.testing.assert_allclose(spread(True), 1, atol=0.03)
    assert spread(False) > 5 or scale < 1


def test_sizes_are_the_published_ones():
    """At 1024 pixels, as the authors' programs print them: 30,370,060 and 29,012,513."""
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    generator = Generator((1024, 1024, 3), 1)
    z, labels = jnp.zeros((1, generator.latents())), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(generator.init, KEY, z, labels)["params"]
    assert count(params) == 30_370_060
    judge = jax.eval_shape(Discriminator().init, KEY, jnp.zeros((1, 1024, 1024, 3)))
    assert count(judge) + 512 + 1 == 29_012_513  # the logit is the head's


def test_a_sample_is_a_function_of_its_latent_and_noise_is_a_part_of_it(small):
    generator, variables, z = small
    labels = jnp.arange(4) % 3

    def draw(z, **options):
        return jax.jit(generator.clone(**options).apply)(variables, z, labels)

    x = draw(z)
    assert x.shape == (4, 16, 16, 1) and np.isfinite(x).all()
    assert not np.allclose(draw(z.at[:, 6:-8].set(0)), x)
    np.testing.assert_allclose(draw(z.at[:, 6:-8].set(0)), draw(z[:, :6]), atol=1e-6)
    # What is mixed in training alone does not show.
    np.testing.assert_array_equal(draw(z.at[:, -8:].set(0)), x)
    # psi = 0: the mean style whatever z and label, at one noise.
    same = jnp.broadcast_to(z[:1, 6:], z[:, 6:].shape)
    flat = draw(jnp.concatenate([z[:, :6], same], 1), psi=0.0)
    np.testing.assert_allclose(flat, jnp.broadcast_to(flat[:1], flat.shape), atol=1e-6)


def test_styles_are_mixed_from_a_layer_on_and_their_mean_is_noted(small):
    generator, variables, z = small
    labels, layers = jnp.zeros(4, jnp.int32), len(generator.sides) + 1

    def apply(z, **options):
        of = functools.partial(
            generator.clone(**options).apply, train=True, mutable=["batch_stats"]
        )
        return jax.jit(of)(variables, z, labels)

    never = apply(z.at[:, -1].set(9.0))[0]  # uniform 1: not mixed
    np.testing.assert_allclose(never, generator.apply(variables, z, labels), atol=1e-6)
    np.testing.assert_allclose(apply(z, mixing=0.0)[0], never, atol=1e-6)
    mixed, new = apply(z.at[:, -1].set(-9.0).at[:, -2].set(-9.0))  # from the second layer on
    styles = lambda z: generator.apply(variables, z, labels, method="styles")
    w, other = styles(z[:, :6]), styles(z[:, -8:-2])
    rows = jnp.stack([w] + [other] * (layers - 1), 1)
    noise = z[:, 6:-8]
    want = generator.apply(variables, rows, noise, method="images")
    np.testing.assert_allclose(mixed, want, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["style"], w.mean(0), atol=1e-6)


def test_deviation_is_of_groups_of_neighbours():
    x = jax.random.normal(KEY, (6, 3, 3, 2))
    same = jnp.repeat(x[:1], 4, 0)
    np.testing.assert_allclose(deviation(same, 4)[..., -1], 1e-4, atol=1e-8)
    found = deviation(x, 4)[..., -1]  # of six: pairs
    for n in range(3):
        pair = np.asarray(x[2 * n : 2 * n + 2])
        np.testing.assert_allclose(found[2 * n], np.sqrt(pair.var(0) + 1e-8).mean(), rtol=1e-5)


def test_gradients_of_gradients_are_those_of_differences():
    """Of a penalty as R1, through doubling and halving."""
    up, down = Conv(2, up=True), Conv(2, 1, down=True, bias=False)
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (2, 4, 4, 2), jnp.float64)
        params = [up.init(KEY, x)["params"], down.init(KEY, x)["params"]]
        params = jax.tree.map(lambda a: a.astype(jnp.float64), params)

        @jax.jit
        def penalty(s):
            first, second = (jax.tree.map(lambda a: a * (1 + s), p) for p in params)

            def made(x):
                y = Conv(2, up=True, dtype=jnp.float64).apply({"params": first}, x)
                y = Conv(2, 1, down=True, bias=False, dtype=jnp.float64).apply(
                    {"params": second}, y
                )
                return jnp.sin(y).sum()

            return jnp.square(jax.grad(made)(x)).sum()

        difference = (penalty(1e-5) - penalty(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(penalty))(0.0), difference, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "words"),
    [
        ((16, 16, 1), 7, "6, or 670 with noise"),
        ((4, 4, 1), 6, "8 pixels"),
        ((12, 12, 1), 6, "squares"),
    ],
)
def test_bad_sizes_are_named(shape, size, words):
    generator = Generator(shape, 3, **SMALL)
    with pytest.raises(UsageError, match=words):
        jax.eval_shape(generator.init, KEY, jnp.zeros((1, size)), jnp.zeros(1, jnp.int32))
