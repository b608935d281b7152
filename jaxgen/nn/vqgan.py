"""VQGAN's networks: the autoencoder around a quantiser, and the PatchGAN discriminator.

Esser, Rombach & Ommer, "Taming Transformers for High-Resolution Image Synthesis" (2021), table 7.
The default sizes are those of the ImageNet model with codes at 1/16 of the resolution, which with
16384 codes of 8 channels is LlamaGen's tokenizer too (72M parameters; at 1/8 70M).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.autoencoder import Decoder, Encoder
from jaxgen.nn.gan_layers import BatchNorm
from jaxgen.nn.layers import compute_dtype

LAST = ("decoder", "conv_out", "kernel")
"""Where the weights of the decoder's last layer are, for the adaptive adversarial weight."""


class VQGAN(nn.Module):
    """The autoencoder without its quantiser: `encode` gives what is quantised, `decode` an image.

    code_channels: of the vectors that are quantised; the tokenizer sets it to its quantiser's.
    channels: between encoder and the 1x1 layer to code_channels. widths, blocks, attention_levels,
    groups, dropout, dtype: of `autoencoder.Encoder`.
    """

    out_channels: int
    code_channels: int = 256
    channels: int = 256
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    groups: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        """The parts, under the names of the parameters."""
        if any(not 0 <= level < len(self.widths) for level in self.attention_levels):
            levels = f"levels 0 to {len(self.widths) - 1}"
            raise invalid("model.attention_levels", self.attention_levels, levels)
        common: dict[str, Any] = dict(
            widths=self.widths,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            groups=self.groups,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.encoder = Encoder(self.channels, **common)
        self.quant = nn.Dense(self.code_channels)
        self.post_quant = nn.Dense(self.channels)
        self.decoder = Decoder(self.out_channels, **common)

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> float32 [B, h, w, code_channels]."""
        return self.quant(self.encoder(x, train=train))

    def decode(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, h, w, code_channels] -> float32 images [B, H, W, out_channels], not clipped."""
        return self.decoder(self.post_quant(z), train=train)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Without a quantiser between; what `init` runs."""
        return self.decode(self.encode(x, train=train), train=train)


class PatchGAN(nn.Module):
    """Logits of overlapping patches (Isola et al. 2017): x [B, H, W, C] -> [B, H', W'].

    4x4 convolutions, `depth` of them with stride 2, then two with stride 1; batch norm in between,
    its moments always the batch's. With width 64, depth 3: 2.77M parameters, patches of 70 pixels.
    """

    width: int = 64
    depth: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> float32 logits [B, H', W']."""
        dtype, init = compute_dtype(self.dtype), nn.initializers.normal(0.02)
        border = ((1, 1), (1, 1))
        h = x.astype(dtype)
        for number in range(self.depth + 1):
            last = number == self.depth
            layer = nn.Conv(
                self.width * min(2**number, 8),
                (4, 4),
                1 if last else 2,
                border,
                use_bias=number == 0,
                kernel_init=init,
                dtype=dtype,
                name=f"conv{number}",
            )
            h = layer(h)
            if number:
                h = BatchNorm(name=f"norm{number}")(h, None, train=True).astype(dtype)
            h = nn.leaky_relu(h, 0.2)
            if min(h.shape[1:3]) < 3 - last:
                raise invalid("model.discriminator.depth", self.depth, "fewer, for these images")
        h = nn.Conv(1, (4, 4), 1, border, kernel_init=init, dtype=dtype, name="out")(h)
        return h[..., 0].astype(jnp.float32)
