"""Images and labels in one diffusion: the aggregate, the loss, reading samples, refusals."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.methods.joint import Joint

PATH = paths.linear()
CODES = jnp.asarray([[[0.5], [-0.2]], [[1.0], [0.3]]])
X0 = jax.random.normal(jax.random.key(0), (4, 2, 1))
LABELS = jnp.array([0, 1, 1, 0])
T = jnp.array([0.2, 0.4, 0.6, 0.8])


class Affine(nn.Module):
    """Channels a z + b: what a network with three channels may be."""

    out_channels: int = 3

    @nn.compact
    def __call__(self, x, noise, labels, *, train=False):
        return nn.Dense(self.out_channels, kernel_init=nn.initializers.normal(1.0))(x)


@pytest.fixture(scope="module")
def params():
    return Affine().init(jax.random.key(1), X0, T, LABELS)["params"]


def test_the_loss_by_hand(params):
    joint = Joint(Affine(), PATH, CODES, "eps")
    eps = jax.random.normal(jax.random.key(2), X0.shape)
    found = joint.loss(params, X0, LABELS, eps, T, label_weight=0.7)
    t = np.asarray(T)[:, None, None]
    z = (1 - t) * (np.asarray(X0) + np.asarray(CODES)[np.asarray(LABELS)]) + t * np.asarray(eps)
    out = z @ np.asarray(params["Dense_0"]["kernel"]) + np.asarray(params["Dense_0"]["bias"])
    logits = out[..., 1:].mean(1)
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), np.asarray(LABELS)]
    wanted = ((out[..., :1] - np.asarray(eps)) ** 2).mean() + 0.7 * nats.mean()
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_reading_undoes_encoding_where_the_label_is_sure():
    joint = Joint(Affine(), PATH, CODES)
    keys = jax.random.split(jax.random.key(3), 4)
    x, y = joint.read(200.0 * jax.nn.one_hot(LABELS, 2), joint.encode(X0, LABELS), keys)
    np.testing.assert_array_equal(y, LABELS)
    np.testing.assert_allclose(x, X0, atol=1e-6)


def test_labels_are_drawn_and_not_the_likeliest():
    joint = Joint(Affine(), PATH, CODES)
    keys, z = jax.random.split(jax.random.key(4), 4000), jnp.zeros((4000, 2, 1))
    _, y = joint.read(jnp.broadcast_to(jnp.log(jnp.array([0.8, 0.2])), (4000, 2)), z, keys)
    # Four standard deviations of a binomial share.
    assert float(y.mean()) == pytest.approx(0.2, abs=4 * (0.16 / 4000) ** 0.5)


def test_the_denoiser_is_the_images_head(params):
    joint = Joint(Affine(), PATH, CODES, "x0")
    p, _ = joint.denoiser(params)(None, X0, jnp.float32(0.5))
    np.testing.assert_array_equal(p.x0, joint.heads(params, X0, jnp.float32(0.5))[0])


def test_what_cannot_be_is_refused(params):
    with pytest.raises(UsageError, match="joint.kind: got 'edm'"):
        Joint(Affine(), PATH, CODES, "edm")
    with pytest.raises(UsageError, match="joint.codes"):
        Joint(Affine(), PATH, CODES[:1])
    with pytest.raises(UsageError, match="channels . classes = 4"):
        Joint(Affine(), PATH, jnp.zeros((3, 2, 1))).heads(params, X0, T)
    with pytest.raises(UsageError, match="joint.label_weight: got -1"):
        Joint(Affine(), PATH, CODES).loss(params, X0, LABELS, X0, T, label_weight=-1.0)
