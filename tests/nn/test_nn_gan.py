"""Networks of adversarial training: the papers' parameter counts, shapes, what they look at."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.adversarial.head import projection, unconditional
from jaxgen.families.adversarial.players import Discriminator
from jaxgen.nn import biggan, dcgan
from jaxgen.nn.gan import ConvDiscriminator, ConvGenerator, MLPGenerator, doublings_of
from tests.nn_kit import quick_jit


def variables(module, *args, **kwargs):
    return jax.eval_shape(lambda k: module.init(k, *args, **kwargs), jax.random.key(0))


def live(module, *args, **kwargs):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype),
        variables(module, *args, **kwargs),
    )


def millions(shapes) -> float:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(shapes["params"])) / 1e6


# Brock et al. 2019, table 10 (128 pixels); 256 deep as released (55.9M). Their last convolution of
# BigGAN-deep computes ch = 128 channels and keeps 3: 125 x (9 x 128 + 1) weights more than ours.
KEPT = 125 * (9 * 128 + 1) / 1e6


@pytest.mark.parametrize(
    ("side", "width", "deep", "latent", "generator", "discriminator"),
    [
        (128, 96, False, 120, 70.4, 88.0),
        (128, 128, True, 128, 50.4, 34.6),
        (256, 128, True, 128, 55.9, None),
    ],
)
def test_biggan_has_the_papers_parameters(side, width, deep, latent, generator, discriminator):
    label = jnp.zeros(1, jnp.int32)
    g = variables(
        biggan.Generator((side, side, 3), 1000, width, deep), jnp.zeros((1, latent)), label
    )
    assert round(millions(g) + KEPT * deep, 1) == generator
    head = projection(num_classes=1000, spectral=True)
    judge = Discriminator(biggan.Discriminator(width, deep), head)
    d = variables(judge, jnp.zeros((1, side, side, 3)), label)
    assert discriminator is None or round(millions(d), 1) == discriminator
    # Attention is at 64 pixels, in both.
    assert "attention" in g["params"] and "attention" in d["params"]["backbone"]


def in_training(module):
    """The module's function in training mode, compiled."""
    return quick_jit(lambda v, *a: module.apply(v, *a, train=True, mutable=["batch_stats"])[0])


def test_biggan_runs_small():
    labels, z = jnp.arange(2), jax.random.normal(jax.random.key(0), (2, 8))
    generator = biggan.Generator((32, 32, 3), 3, 4, label_width=4, attention=0)
    held, apply = live(generator, z, labels), in_training(generator)
    x = apply(held, z, labels)
    assert x.shape == (2, 32, 32, 3) and x.dtype == jnp.float32 and float(jnp.abs(x).max()) <= 1
    assert not np.allclose(x, apply(held, z, labels + 1))
    # Every chunk of the latent, the last block's too, reaches the image.
    for chunk in range(4):
        moved = apply(held, z.at[:, 2 * chunk].add(1.0), labels)
        assert float(jnp.abs(moved - x).max()) > 1e-5, chunk


@pytest.mark.parametrize("deep", [False, True])
def test_biggan_shapes_at_every_size(deep):
    for side in biggan.GENERATOR:
        z = jnp.zeros((2, 2 * len(biggan.GENERATOR[side])))
        generator = biggan.Generator((side, side, 3), 3, 8, deep, 4)
        out = jax.eval_shape(
            lambda g=generator, z=z: g.init_with_output(jax.random.key(0), z, jnp.arange(2))[0]
        )
        assert out.shape == (2, side, side, 3)
        backbone, x = biggan.Discriminator(8, deep), jnp.zeros((2, side, side, 3))
        out = jax.eval_shape(lambda d=backbone, x=x: d.init_with_output(jax.random.key(0), x)[0])
        assert out.shape == (2, 32 if side == 32 else 128)


def test_deep_blocks_keep_their_shortcuts():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    up = biggan.DeepUpBlock(4, True, jnp.float32)
    held = live(up, x, jnp.ones((2, 3)), train=True)
    held["params"]["conv3"] = jax.tree.map(jnp.zeros_like, held["params"]["conv3"])
    y = quick_jit(lambda v: up.apply(v, x, jnp.ones((2, 3)), train=True, mutable=True)[0])(held)
    np.testing.assert_allclose(y, x[..., :4].repeat(2, 1).repeat(2, 2), atol=1e-6)
    down = biggan.DeepDownBlock(12, True, jnp.float32)
    held = live(down, x)
    held["params"]["conv3"] = jax.tree.map(jnp.zeros_like, held["params"]["conv3"])
    y = quick_jit(down.apply)(held, x)
    np.testing.assert_allclose(y[..., :8], x.reshape(2, 2, 2, 2, 2, 8).mean((2, 4)), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: variables(biggan.Generator((48, 48, 3), 3), jnp.zeros((1, 8)), jnp.zeros(1, int)),
        lambda: variables(biggan.Generator((32, 32, 3), 3), jnp.zeros((1, 7)), jnp.zeros(1, int)),
        lambda: variables(biggan.Discriminator(spectral=False), jnp.zeros((1, 32, 32, 3))),
        lambda: doublings_of((12, 12, 1)),
        lambda: doublings_of((8, 4, 1)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_small_networks():
    labels, z = jnp.arange(2), jax.random.normal(jax.random.key(0), (2, 5))
    generator = ConvGenerator((16, 16, 2), 3, width=4)
    x = in_training(generator)(live(generator, z, labels), z, labels)
    assert x.shape == (2, 16, 16, 2) and float(jnp.abs(x).max()) <= 1
    backbone = ConvDiscriminator(width=4, features=6)
    assert quick_jit(backbone.apply)(live(backbone, x), x).shape == (2, 6)
    plain = MLPGenerator((2,), 3, 8, 1, conditional=False, squash=False)
    held = live(plain, z, labels)
    np.testing.assert_array_equal(plain.apply(held, z, labels), plain.apply(held, z, labels + 1))


def test_dcgan_has_the_tables_parameters_and_norms_where_the_paper_has_them():
    """At 64 pixels from 100 latents, width 64, counted by hand with 4x4 kernels; and its biases."""
    label, z = jnp.zeros(1, jnp.int32), jnp.zeros((1, 100))
    generator = dcgan.Generator((64, 64, 3), 1, conditional=False)
    g = variables(generator, z, label)
    assert round(millions(g) * 1e6) == 3_576_704 + 3
    judge = Discriminator(dcgan.Discriminator(), unconditional())
    d = variables(judge, jnp.zeros((1, 64, 64, 3)), label)
    assert round(millions(d) * 1e6) == 2_765_568 + 64 + 1
    assert set(g["batch_stats"]) == {f"norm{n}" for n in range(4)}
    assert set(d["batch_stats"]["backbone"]) == {f"norm{n}" for n in (1, 2, 3)}
    # Spectral norms in their place: on every layer but the head's own.
    sn = dcgan.Discriminator(width=4, spectral=True, batch_norm=False)
    found = variables(sn, jnp.zeros((1, 8, 8, 1)))
    assert set(found["spectral"]) == set(found["params"]) and "batch_stats" not in found


def test_dcgan_makes_images_of_its_labels():
    generator = dcgan.Generator((8, 8, 1), 3, width=4)
    z, labels = jax.random.normal(jax.random.key(0), (3, 5)), jnp.array([0, 1, 0])
    weights = live(generator, z, labels)
    options = dict(train=True, mutable=["batch_stats"])
    draw = quick_jit(lambda z, y: generator.apply(weights, z, y, **options)[0])
    x = draw(z, labels)
    assert x.shape == (3, 8, 8, 1) and float(jnp.abs(x).max()) <= 1
    assert (draw(z, labels + 1) != x).any() and (draw(z + 1, labels) != x).any()
    with pytest.raises(UsageError, match="image size"):
        variables(dcgan.Discriminator(), jnp.zeros((1, 10, 10, 1)))
