"""Convolutional encoder and decoder of image tokenizers: VQGAN's, and Stable Diffusion's VAE.

Esser et al. 2021 (VQGAN), Rombach et al. 2022 (latent diffusion, appendix): residual blocks with
GroupNorm and SiLU, stride-2 convolutions padded below and right, nearest-neighbour upsampling, one
attention block in the middle (and, by option, at chosen levels).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.parallel import Dropout
from jaxgen.ops import attention

EPSILON = 1e-6


def _norm(channels: int, groups: int, name: str) -> nn.GroupNorm:
    """GroupNorm in float32 with as many groups, up to `groups`, as divide the channels."""
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, epsilon=EPSILON, name=name)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    groups: int = 32
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features]."""
        h = nn.silu(_norm(x.shape[-1], self.groups, "norm1")(x)).astype(self.dtype)
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = nn.silu(_norm(self.features, self.groups, "norm2")(h)).astype(self.dtype)
        h = Dropout(self.dropout, deterministic=not train)(h)
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places, residual: [B, H, W, C] -> the same."""

    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        h = _norm(channels, self.groups, "norm")(x).astype(self.dtype)
        h = h.reshape(batch, 1, height * width, channels)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, name=n)(h) for n in ("q", "k", "v"))
        h = attention(q, k, v, scale=channels**-0.5)
        h = nn.Dense(channels, dtype=self.dtype, name="proj")(h)
        return x + h.reshape(x.shape)


class Encoder(nn.Module):
    """Images [B, H, W, C] -> features [B, H / f, W / f, out_channels], f = 2^(levels - 1).

    widths: channels of each level. blocks: residual blocks a level. attention_levels: levels whose
    blocks are followed by attention (VQGAN: the last). Raises UsageError if f does not divide the
    image.
    """

    out_channels: int
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    groups: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> float32 [B, h, w, out_channels]."""
        dtype = compute_dtype(self.dtype)
        factor = 2 ** (len(self.widths) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise invalid("image size", x.shape[1:3], f"multiples of {factor}")
        common: dict[str, Any] = dict(groups=self.groups, dtype=dtype)
        h = nn.Conv(self.widths[0], (3, 3), dtype=dtype, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            for number in range(self.blocks):
                name = f"down{level}_{number}"
                h = ResBlock(width, dropout=self.dropout, name=name, **common)(h, train=train)
                if level in self.attention_levels:
                    h = AttentionBlock(name=f"down{level}_attention{number}", **common)(h)
            if level < len(self.widths) - 1:
                h = jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))
                name = f"down{level}_sample"
                h = nn.Conv(width, (3, 3), 2, "VALID", dtype=dtype, name=name)(h)
        h = _middle(h, self.widths[-1], self.dropout, common, train)
        h = nn.silu(_norm(h.shape[-1], self.groups, "norm_out")(h)).astype(dtype)
        return nn.Conv(self.out_channels, (3, 3), dtype=dtype, name="conv_out")(h).astype(
            jnp.float32
        )


class Decoder(nn.Module):
    """Codes [B, h, w, c] -> images [B, h f, w f, out_channels]; the mirror of `Encoder`.

    Each level has one residual block more than the encoder's.
    """

    out_channels: int
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    groups: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, h, w, c] -> float32 [B, H, W, out_channels]."""
        dtype = compute_dtype(self.dtype)
        common: dict[str, Any] = dict(groups=self.groups, dtype=dtype)
        h = nn.Conv(self.widths[-1], (3, 3), dtype=dtype, name="conv_in")(z)
        h = _middle(h, self.widths[-1], self.dropout, common, train)
        for level, width in reversed(list(enumerate(self.widths))):
            for number in range(self.blocks + 1):
                name = f"up{level}_{number}"
                h = ResBlock(width, dropout=self.dropout, name=name, **common)(h, train=train)
                if level in self.attention_levels:
                    h = AttentionBlock(name=f"up{level}_attention{number}", **common)(h)
            if level > 0:
                h = h.repeat(2, axis=1).repeat(2, axis=2)
                h = nn.Conv(width, (3, 3), dtype=dtype, name=f"up{level}_sample")(h)
        h = nn.silu(_norm(h.shape[-1], self.groups, "norm_out")(h)).astype(dtype)
        out = nn.Conv(self.out_channels, (3, 3), dtype=dtype, name="conv_out")(h)
        return out.astype(jnp.float32)


def _middle(
    h: jax.Array, width: int, dropout: float, common: dict[str, Any], train: bool
) -> jax.Array:
    """A residual block, attention, a residual block, in the scope of the caller."""
    h = ResBlock(width, dropout=dropout, name="mid0", **common)(h, train=train)
    h = AttentionBlock(name="mid_attention", **common)(h)
    return ResBlock(width, dropout=dropout, name="mid1", **common)(h, train=train)


class AutoencoderKL(nn.Module):
    """The autoencoder of latent diffusion: images to moments of a Gaussian, samples back to images.

    With the default sizes, 3 channels and 4 latent ones: Stable Diffusion's, 83.7M parameters.
    `encode` gives mean and log-variance, each [B, h, w, latent_channels]; `decode` an image.
    """

    out_channels: int
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    groups: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        """The parts, under the names of the parameters."""
        common: dict[str, Any] = dict(
            widths=self.widths,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            groups=self.groups,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.encoder = Encoder(2 * self.latent_channels, **common)
        self.quant = nn.Conv(2 * self.latent_channels, (1, 1))
        self.post_quant = nn.Conv(self.latent_channels, (1, 1))
        self.decoder = Decoder(self.out_channels, **common)

    def encode(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> mean, log-variance clipped to [-30, 20], [B, h, w, latent_channels]."""
        mean, logvar = jnp.split(self.quant(self.encoder(x, train=train)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, h, w, latent_channels] -> images [B, H, W, out_channels], not clipped."""
        return self.decoder(self.post_quant(z), train=train)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The decoded mean; what `init` runs."""
        return self.decode(self.encode(x, train=train)[0], train=train)
