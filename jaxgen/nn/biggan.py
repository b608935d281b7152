"""BigGAN and BigGAN-deep, generators and discriminators at 32 to 256 pixels.

Brock, Donahue & Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis"
(2019), appendix B. One embedding of the label is shared by every class-conditional batch norm;
BigGAN gives each block its own chunk of the latent beside it, BigGAN-deep the whole latent. The
projection head (`families.adversarial.head`) completes the discriminator.

With 1000 classes and 128 pixels: BigGAN 70.4M (generator) and 88.0M (discriminator), BigGAN-deep
50.2M and 34.6M parameters. The published 50.4M counts a last convolution that computes as many
channels as it reads, of which three are kept; ours computes the three.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import gan_layers
from jaxgen.nn.layers import compute_dtype

# Orthogonal at initialisation, everywhere (Saxe et al. 2014).
_partial: Any = functools.partial(functools.partial, initial=gan_layers.ORTHOGONAL)
BatchNorm, SelfAttention = _partial(gan_layers.BatchNorm), _partial(gan_layers.SelfAttention)
Conv, Dense = _partial(gan_layers.Conv), _partial(gan_layers.Dense)
Embed = _partial(gan_layers.Embed)

# Widths as multiples of `width`, from 4x4 up in the generator; the paper's tables 4 to 9.
GENERATOR = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# From the image down in the discriminator; a last block keeps the resolution.
DISCRIMINATOR = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
DEEP = {
    32: (4, 4, 4),
    64: (2, 4, 8, 16),
    128: (2, 4, 8, 16, 16),
    256: (2, 4, 8, 8, 16, 16),
}
# How many blocks halve the image. All of BigGAN-deep's do; at 32 pixels not its last.
HALVINGS = {32: 2, 64: 4, 128: 5, 256: 6}


def _up(x: jax.Array) -> jax.Array:
    return x.repeat(2, 1).repeat(2, 2)


def _down(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (2, 2), (2, 2))


class UpBlock(nn.Module):
    """BigGAN's generator block: two 3x3 convolutions at twice the resolution, learned shortcut."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        """x [B, H, W, C], condition [B, D] -> [B, 2 H, 2 W, features]."""
        h = nn.relu(BatchNorm(True, name="norm0")(x, condition, train=train))
        h = Conv(self.features, 3, True, dtype=self.dtype, name="conv0")(_up(h))
        h = nn.relu(BatchNorm(True, name="norm1")(h, condition, train=train))
        h = Conv(self.features, 3, True, dtype=self.dtype, name="conv1")(h)
        return h + Conv(self.features, 1, True, dtype=self.dtype, name="shortcut")(_up(x))


class DownBlock(nn.Module):
    """BigGAN's discriminator block; the first one of a network does not begin with ReLU."""

    features: int
    halve: bool
    first: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H', W', features], H' = H / 2 where `halve`."""
        h = x if self.first else nn.relu(x)
        h = Conv(self.features, 3, True, dtype=self.dtype, name="conv0")(h)
        h = Conv(self.features, 3, True, dtype=self.dtype, name="conv1")(nn.relu(h))
        h = _down(h) if self.halve else h
        if not self.halve and x.shape[-1] == self.features:
            return x + h
        # Averages and 1x1 convolutions commute: halve first, which is cheaper.
        x = _down(x) if self.halve else x
        return h + Conv(self.features, 1, True, dtype=self.dtype, name="shortcut")(x)


class DeepUpBlock(nn.Module):
    """BigGAN-deep's generator block: a bottleneck of a quarter; the shortcut drops channels."""

    features: int
    double: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        """x [B, H, W, C], condition [B, D] -> [B, H', W', features], H' = 2 H where `double`."""
        inner, h = x.shape[-1] // 4, x
        for number, (size, features) in enumerate(
            ((1, inner), (3, inner), (3, inner), (1, self.features))
        ):
            h = nn.relu(BatchNorm(True, name=f"norm{number}")(h, condition, train=train))
            if number == 1 and self.double:
                h = _up(h)
            h = Conv(features, size, True, dtype=self.dtype, name=f"conv{number}")(h)
        x = x[..., : self.features]
        return h + (_up(x) if self.double else x)


class DeepDownBlock(nn.Module):
    """BigGAN-deep's discriminator block; the shortcut gains channels by a 1x1 convolution."""

    features: int
    halve: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H', W', features], H' = H / 2 where `halve`."""
        inner, h = self.features // 4, x
        for number, size in enumerate((1, 3, 3)):
            h = Conv(inner, size, True, dtype=self.dtype, name=f"conv{number}")(nn.relu(h))
        h = nn.relu(h)
        if self.halve:
            h, x = _down(h), _down(x)
        h = Conv(self.features, 1, True, dtype=self.dtype, name="conv3")(h)
        gained = self.features - x.shape[-1]
        if gained:
            more = Conv(gained, 1, True, dtype=self.dtype, name="shortcut")(x)
            x = jnp.concatenate([x, more], -1)
        return h + x


class Generator(nn.Module):
    """module(z[B, D], labels[B], *, train) -> float32 images [B, H, H, C] in [-1, 1].

    width: the papers' ch (96; 128 for deep; 64 at 32 pixels). deep: BigGAN-deep, two blocks a
    resolution. Without it D must be a multiple of the number of chunks, 1 + doublings (so 120 at
    128 pixels). attention: the resolution with self-attention, 0 for none.
    """

    shape: tuple[int, ...]
    num_classes: int
    width: int = 96
    deep: bool = False
    label_width: int = 128
    attention: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, D], labels [B] -> float32 [B, H, H, C]."""
        dtype, widths = compute_dtype(self.dtype), GENERATOR[side_of(self.shape)]
        y = Embed(self.num_classes, self.label_width, name="labels")(labels)
        if self.deep:
            first = jnp.concatenate([z, y], -1)
            conditions = [first] * (len(widths) - 1)
        else:
            if z.shape[-1] % len(widths):
                allowed = f"multiples of {len(widths)}, one chunk for each block and the input"
                raise invalid("method.latent.size", z.shape[-1], allowed)
            first, *chunks = jnp.split(z, len(widths), -1)
            conditions = [jnp.concatenate([chunk, y], -1) for chunk in chunks]
        features = widths[0] * self.width
        h = Dense(16 * features, True, dtype=dtype, name="in")(first).reshape(-1, 4, 4, features)
        for number, (multiple, condition) in enumerate(zip(widths[1:], conditions, strict=True)):
            features = multiple * self.width
            if self.deep:
                block = DeepUpBlock(h.shape[-1], False, dtype, name=f"block{number}a")
                h = block(h, condition, train=train)
                block = DeepUpBlock(features, True, dtype, name=f"block{number}b")
                h = block(h, condition, train=train)
            else:
                h = UpBlock(features, dtype, name=f"block{number}")(h, condition, train=train)
            if h.shape[1] == self.attention:
                h = SelfAttention(dtype=dtype, name="attention")(h)
        h = nn.relu(BatchNorm(name="norm")(h, None, train=train))
        h = Conv(self.shape[-1], 3, True, dtype=dtype, name="out")(h)
        return jnp.tanh(h.astype(jnp.float32))


class Discriminator(nn.Module):
    """Backbone module(x[B, H, H, C], *, train) -> float32 features [B, F], summed over places.

    Fields as the generator's. spectral is always on.
    """

    width: int = 96
    deep: bool = False
    attention: int = 64
    dtype: str = "float32"
    spectral: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, H, C] -> [B, F]."""
        if not self.spectral:
            raise invalid("config.model.discriminator.spectral", False, "True")
        dtype, side = compute_dtype(self.dtype), side_of(x.shape[1:])
        widths = (DEEP if self.deep else DISCRIMINATOR)[side]
        h = Conv(self.width, 3, True, dtype=dtype, name="in")(x) if self.deep else x
        for number, multiple in enumerate(widths):
            features, halve = multiple * self.width, number < HALVINGS[side]
            if self.deep:
                h = DeepDownBlock(features, halve, dtype, name=f"block{number}a")(h)
                h = DeepDownBlock(features, False, dtype, name=f"block{number}b")(h)
            else:
                h = DownBlock(features, halve, number == 0, dtype, name=f"block{number}")(h)
            if h.shape[1] == self.attention and number < HALVINGS[side]:
                h = SelfAttention(dtype=dtype, name="attention")(h)
        return nn.relu(h).astype(jnp.float32).sum((1, 2))


def side_of(shape: tuple[int, ...]) -> int:
    """The side of square images (H, H, C); UsageError for one that the papers' tables lack."""
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] not in GENERATOR:
        raise invalid("image size", shape, f"squares of {', '.join(map(str, GENERATOR))}")
    return shape[0]
