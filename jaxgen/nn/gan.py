"""Small networks for adversarial training: perceptrons (with maxout) and convolutions.

A generator is module(z[B, D], labels[B], *, train) -> float32 [B, *shape]. A discriminator's
backbone is module(x[B, *shape], *, train) -> features [B, F]; a head of `families.adversarial`
turns features and labels into logits.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.gan_layers import BatchNorm, Conv, Dense, Embed
from jaxgen.nn.layers import compute_dtype


def maxout(x: jax.Array, pieces: int) -> jax.Array:
    """The largest of each group of `pieces` neighbours: [..., F] -> [..., F / pieces].

    Goodfellow et al. 2013; a layer of F / pieces units with linear pieces is a dense layer of F
    features and this.
    """
    return x.reshape(*x.shape[:-1], -1, pieces).max(-1)


class MLPGenerator(nn.Module):
    """Perceptron generator: latents beside an embedding of the label, `depth` hidden layers.

    conditional: False ignores labels. batch_norm: after each hidden layer. squash: tanh at the end,
    for images in [-1, 1].
    """

    shape: tuple[int, ...]
    num_classes: int
    width: int = 256
    depth: int = 2
    label_width: int = 32
    conditional: bool = True
    batch_norm: bool = False
    squash: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, D], labels [B] -> float32 [B, *shape]."""
        dtype = compute_dtype(self.dtype)
        h = z
        if self.conditional:
            table = Embed(self.num_classes, self.label_width, name="labels")
            h = jnp.concatenate([h, table(labels)], -1)
        for number in range(self.depth):
            init = nn.initializers.he_normal()
            h = nn.Dense(self.width, kernel_init=init, dtype=dtype, name=f"hidden{number}")(h)
            if self.batch_norm:
                h = BatchNorm(name=f"norm{number}")(h, None, train=train).astype(dtype)
            h = nn.leaky_relu(h, 0.2)
        h = nn.Dense(math.prod(self.shape), dtype=dtype, name="out")(h).astype(jnp.float32)
        return (jnp.tanh(h) if self.squash else h).reshape(-1, *self.shape)


class MLPDiscriminator(nn.Module):
    """Perceptron backbone: `depth` hidden layers of leaky ReLU or maxout units.

    pieces: linear pieces of a maxout unit. spectral: spectral norm on every layer.
    """

    width: int = 256
    depth: int = 2
    activation: Literal["leaky_relu", "maxout"] = "leaky_relu"
    pieces: int = 5
    spectral: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, *shape] -> float32 [B, width]."""
        dtype = compute_dtype(self.dtype)
        pieces = self.pieces if self.activation == "maxout" else 1
        h = x.reshape(x.shape[0], -1)
        for number in range(self.depth):
            layer = Dense(self.width * pieces, self.spectral, dtype=dtype, name=f"hidden{number}")
            h = maxout(layer(h), pieces) if pieces > 1 else nn.leaky_relu(layer(h), 0.2)
        return h.astype(jnp.float32)


class ConvGenerator(nn.Module):
    """Small convolutional generator: a 4x4 grid, then doubled until the image's size.

    Latents and label enter at the dense layer and, through class-conditional batch norm, at every
    resolution. The image must be a square whose side is 4 times a power of 2.
    """

    shape: tuple[int, ...]
    num_classes: int
    width: int = 32
    label_width: int = 32
    batch_norm: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, D], labels [B] -> float32 [B, H, W, C] in [-1, 1]."""
        dtype, doublings = compute_dtype(self.dtype), doublings_of(self.shape)
        condition = jnp.concatenate(
            [z, Embed(self.num_classes, self.label_width, name="labels")(labels)], -1
        )
        width = self.width * 2**doublings
        h = Dense(16 * width, dtype=dtype, name="in")(condition).reshape(-1, 4, 4, width)
        for number in range(doublings + 1):
            if self.batch_norm:
                h = BatchNorm(name=f"norm{number}")(h, condition, train=train).astype(dtype)
            h = nn.leaky_relu(h, 0.2)
            if number < doublings:
                width //= 2
                h = h.repeat(2, 1).repeat(2, 2)
                h = Conv(width, dtype=dtype, name=f"up{number}")(h)
        h = Conv(self.shape[-1], dtype=dtype, name="out")(h)
        return jnp.tanh(h.astype(jnp.float32))


class ConvDiscriminator(nn.Module):
    """Small convolutional backbone: 3x3 convolutions, halved until 4x4 are left, flattened.

    spectral: spectral norm on every layer.
    """

    width: int = 32
    features: int = 128
    spectral: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> float32 [B, features]."""
        dtype, width = compute_dtype(self.dtype), self.width
        h = nn.leaky_relu(Conv(width, 3, self.spectral, dtype=dtype, name="in")(x), 0.2)
        for number in range(doublings_of(x.shape[1:])):
            width *= 2
            h = nn.avg_pool(h, (2, 2), (2, 2))
            layer = Conv(width, 3, self.spectral, dtype=dtype, name=f"down{number}")
            h = nn.leaky_relu(layer(h), 0.2)
        h = h.reshape(h.shape[0], -1)
        h = Dense(self.features, self.spectral, dtype=dtype, name="features")(h)
        return nn.leaky_relu(h, 0.2).astype(jnp.float32)


def doublings_of(shape: tuple[int, ...]) -> int:
    """How often 4x4 doubles to the image (H, W, C); UsageError where it does not."""
    side = shape[0]
    doublings = max(side // 4, 1).bit_length() - 1
    if len(shape) != 3 or shape[1] != side or 4 * 2**doublings != side:
        raise invalid("image size", shape, "squares (H, H, C) with H = 4, 8, 16, ...")
    return doublings
