"""EDM2: a U-Net whose activations, weights and updates all keep their magnitude by construction.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), config G,
figure 21 and table 6. After each optimizer step the weights must be put back on their sphere:
`EDM2.project`, that is `jaxgen.nn.mp.normalise_weights`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import CONSTANTS
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import compute_dtype, fill, rematerialised, tapped
from jaxgen.nn.mp import (
    MPDense,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise_weights,
    unit_rms,
)
from jaxgen.nn.parallel import Dropout
from jaxgen.nn.resample import double, halve
from jaxgen.ops import attention

# Channels by size (table 6). For 64x64x4 latents and 1000 classes the paper counts 125, 280, 498,
# 777, 1119 and 1523 million parameters.
SIZES: dict[str, int] = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}

RESIDUAL, SKIP, LABEL = 0.3, 0.5, 0.5  # the weights t of the paper's MP-Add and MP-Cat
LIMIT = 256.0  # activations are clipped here, so that float16 cannot overflow


class Block(nn.Module):
    """A magnitude-preserving residual block, with self-attention if `attend`."""

    features: int
    decoder: bool
    attend: bool
    resample: str  # "", "halve" or "double"
    head_channels: int
    dropout: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [B, H, W, C], embedding [B, E] -> [B, H', W', features]."""
        if self.resample:
            x = halve(x) if self.resample == "halve" else double(x)
        if not self.decoder:
            x = unit_rms(self._skip(x), -1)
        gain = self.param("embedding_gain", nn.initializers.zeros, ())
        scale = 1 + MPDense(self.features, dtype=self.dtype, name="embedding")(embedding, gain)
        h = MPDense(self.features, 3, dtype=self.dtype, name="conv_in")(mp_silu(x))
        h = mp_silu(h * scale[:, None, None, :].astype(h.dtype))
        h = Dropout(self.dropout, deterministic=not self.train)(h)
        h = MPDense(self.features, 3, dtype=self.dtype, name="conv_out")(h)
        x = mp_sum(self._skip(x) if self.decoder else x, h, RESIDUAL)
        if self.attend:
            x = mp_sum(x, self._attention(x), RESIDUAL)
        return jnp.clip(x, -LIMIT, LIMIT)

    def _skip(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] == self.features:
            return x
        return MPDense(self.features, 1, dtype=self.dtype, name="skip")(x)

    def _attention(self, x: jax.Array) -> jax.Array:
        """Cosine attention: queries, keys and values at unit root mean square."""
        b, height, width, c = x.shape
        heads = max(1, c // self.head_channels)
        qkv = MPDense(3 * c, dtype=self.dtype, name="qkv")(x.reshape(-1, c))
        qkv = unit_rms(qkv.reshape(b, height * width, 3, heads, c // heads), -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        h = attention(q, k, v, scale=(c // heads) ** -0.5)
        h = h.transpose(0, 2, 1, 3).reshape(-1, c)
        return MPDense(c, dtype=self.dtype, name="proj")(h).reshape(x.shape)


class EDM2(nn.Module):
    """EDM2's U-Net: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    noise: ln(sigma) / 4. condition: labels int32 [B] in [0, num_classes]; num_classes, "no
    label", is a zero vector; or several conditions (`jaxgen.nn.conditions`), of unit variance. H
    and W must be multiples of 2 ** (levels - 1), else UsageError. At initialisation the
    output is exactly zero (a gain that starts at zero). The frequencies and phases of the noise
    number's features are part of the checkpoint and not trained.

    Fields: size ("XS" to "XXL", see `SIZES`), of which channels is where it is 0 (set, it wins);
    multipliers (channels per level over `channels`, finest first),
    blocks (per level), attention_sizes (the heights at which blocks attend), head_channels (of an
    attention head); dropout (rng "dropout" when train=True), dtype (compute; parameters, norms and
    softmax are float32), remat ("none", "full", "dots"); conditions (what it can be told besides
    the label).

    Called with taps=(name, ...) it returns (output, {name: that block's output [B, h, w, C]}), with
    the names of `jaxgen.nn.unet.UNet`. Raises UsageError for other taps.
    """

    num_classes: int
    out_channels: int
    size: str = "S"
    channels: int = 0
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_sizes: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    conditions: Conditions = ()

    class_scale = None
    """What a class's row is multiplied by: normalised over all of them, it is not its own."""

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, {size: {"channels": channels} for size, channels in SIZES.items()})
        super().__post_init__()

    @staticmethod
    def project(params: Any) -> Any:
        """Put the weights back at unit root mean square; for after each optimizer step."""
        return normalise_weights(params)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Any,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
    ) -> Any:
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        self._check(x.shape)
        dtype = compute_dtype(self.dtype)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        embedding = self._embed(noise, condition, max(widths), dtype)
        block_class = rematerialised(Block, self.remat)
        outputs: dict[str, jax.Array] = {}

        def block(
            h: jax.Array,
            features: int,
            name: str,
            *,
            decoder: bool = True,
            attend: bool = False,
            resample: str = "",
        ) -> jax.Array:
            outputs[name] = block_class(
                features,
                decoder,
                attend,
                resample,
                self.head_channels,
                self.dropout,
                train,
                dtype,
                name=name,
            )(h, embedding)
            return outputs[name]

        attends = [x.shape[1] >> level in self.attention_sizes for level in range(len(widths))]
        # A channel of ones stands in for the biases that the layers do not have.
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = MPDense(widths[0], 3, dtype=dtype, name="in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                name = f"halve_{level}"
                h = block(h, h.shape[-1], name, decoder=False, resample="halve")
                skips.append(h)
            for i in range(self.blocks):
                name = f"encode_{level}_{i}"
                h = block(h, width, name, decoder=False, attend=attends[level])
                skips.append(h)
        h = block(h, widths[-1], "middle_0", attend=True)
        h = block(h, widths[-1], "middle_1")
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = block(h, h.shape[-1], f"double_{level}", resample="double")
            for i in range(self.blocks + 1):
                h = mp_cat(h, skips.pop(), SKIP)
                h = block(h, width, f"decode_{level}_{i}", attend=attends[level])
        gain = self.param("out_gain", nn.initializers.zeros, ())
        out = MPDense(self.out_channels, 3, dtype=dtype, name="out")(h, gain)
        out = out.astype(jnp.float32)
        return (out, tapped(outputs, taps)) if taps else out

    def _embed(self, noise: jax.Array, condition: Any, width: int, dtype: Any) -> jax.Array:
        """The conditioning vector [B, width]."""
        h = MPFourier(self.channels, name=CONSTANTS)(noise)
        h = MPDense(width, dtype=dtype, name="noise")(h)
        dense = MPDense(width, dtype=dtype, name="labels")

        def table(labels: jax.Array) -> jax.Array:
            return dense(jax.nn.one_hot(labels, self.num_classes) * math.sqrt(self.num_classes))

        told = embed(
            condition,
            table,
            self.conditions,
            noise.shape[0],
            width=width,
            dtype=dtype,
            preserving=True,
        )
        return mp_silu(mp_sum(h, told, LABEL))

    def _check(self, shape: tuple[int, ...]) -> None:
        multiple = 2 ** (len(self.multipliers) - 1)
        if len(shape) != 4 or shape[1] % multiple or shape[2] % multiple:
            raise invalid(
                "image size",
                shape[1:],
                f"(height, width, channels), height and width multiples of {multiple}",
                f"model.multipliers has {len(self.multipliers)} levels; use fewer, or resize.",
            )
