"""One convolutional U-Net that is DDPM++ (`UNet`), `NCSNpp` or `ADM` by its fields.

DDPM++ and NCSN++: Song et al., "Score-Based Generative Modeling through SDEs" (2021), app. H.
ADM: Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021), sec. 3. Sizes and attention follow
Karras et al., "Elucidating the Design Space" (2022), table 7.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.method import CONSTANTS
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import (
    Fourier,
    compute_dtype,
    modulate,
    rematerialised,
    sines_first,
    sinusoidal,
    tapped,
)
from jaxgen.nn.parallel import Dropout, received
from jaxgen.nn.resample import FILTERS, double, halve, margin
from jaxgen.ops import attention

_KERNEL = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_ZERO = nn.initializers.zeros

EMBEDDINGS = ("endpoint", "sinusoidal", "fourier")
"""Of the noise: DDPM++'s, whose lowest frequency is 1e-4, ADM's, and random ones (NCSN++)."""


def _norm(x: jax.Array, name: str, dtype: Any, epsilon: float) -> jax.Array:
    """GroupNorm of up to 32 groups, statistics in float32.

    A group has four channels or more, as far as they divide: in groups of one, what is added to a
    whole channel, as conditioning is, would be taken away again.
    """
    channels = x.shape[-1]
    most = max(1, min(32, channels // 4))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    norm = nn.GroupNorm(groups, epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)
    return norm(x)


def _conv(features: int, size: int, name: str, dtype: Any, init: Any = _KERNEL) -> nn.Conv:
    return nn.Conv(features, (size, size), kernel_init=init, dtype=dtype, name=name)


class Block(nn.Module):
    """Residual block: optional resampling, conditioning, and optional self-attention."""

    features: int
    attend: bool
    resample: str  # "", "halve" or "double"
    filter: str
    scale_shift: bool
    rescale: bool
    project_resampled: bool
    head_channels: int
    dropout: float
    train: bool
    dtype: Any
    alone: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [B, H, W, C], embedding [B, E] (after its non-linearity) -> [B, H', W', features].

        alone: whether the attention map is the identity. Sows "received" (`nn.parallel.received`).
        """
        h = nn.silu(self._norm(x, "norm_in"))
        if self.resample:
            change = halve if self.resample == "halve" else double
            h, x = change(h, self.filter), change(x, self.filter)
        h = _conv(self.features, 3, "conv_in", self.dtype)(h)
        width = self.features * (2 if self.scale_shift else 1)
        affine = nn.Dense(width, kernel_init=_KERNEL, dtype=self.dtype, name="affine")(embedding)
        affine = affine[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(affine, 2, axis=-1)
            h = nn.silu(modulate(self._norm(h, "norm_out"), shift, scale))
        else:
            h = nn.silu(self._norm(h + affine, "norm_out"))
        h = Dropout(self.dropout, deterministic=not self.train)(h)
        h = _conv(self.features, 3, "conv_out", self.dtype, _ZERO)(h)
        if x.shape[-1] != self.features or (self.resample and self.project_resampled):
            x = _conv(self.features, 1, "skip", self.dtype)(x)
        x = self._add(x, h)
        return self._add(x, self._attention(x)) if self.attend else x

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return _norm(x, name, self.dtype, self.epsilon)

    def _add(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """x + h, divided by sqrt 2 where the network keeps its variance so (Song et al. 2021)."""
        return (x + h) * (math.sqrt(0.5) if self.rescale else 1.0)

    def _attention(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        heads = max(1, c // self.head_channels) if self.head_channels else 1
        h = self._norm(x, "norm_attention").reshape(-1, c)
        qkv = nn.Dense(3 * c, kernel_init=_KERNEL, dtype=self.dtype, name="qkv")(h)
        q, k, v = qkv.reshape(b, height * width, 3, heads, c // heads).transpose(2, 0, 3, 1, 4)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "received", received(q, k))
        h = v if self.alone else attention(q, k, v, scale=(c // heads) ** -0.5)
        h = h.transpose(0, 2, 1, 3).reshape(-1, c)
        h = nn.Dense(c, kernel_init=_ZERO, dtype=self.dtype, name="proj")(h)
        return h.reshape(x.shape)


class UNet(nn.Module):
    """U-Net: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    noise: the noise-level number (ln(sigma) / 4 for EDM), times `time_scale` before its embedding.
    condition: labels int32 [B] in [0, num_classes]; num_classes, "no label", is a zero vector
    (before its bias); or several conditions (`jaxgen.nn.conditions`). num_classes 0: there are no
    labels, and no weights for them. H and W must be multiples of 2 ** (levels - 1),
    else UsageError. augment [B, augment_dim], optional: numbers that say how the image was
    augmented (Karras et al. 2022, app. F.2). At initialisation the output is exactly zero. By
    default EDM's DDPM++ for CIFAR-10, 55.7 million parameters; its 64x64 images (FFHQ, AFHQv2) take
    multipliers (1, 2, 2, 2).

    Fields: channels, multipliers (channels per level over `channels`, finest first), blocks (per
    level); attention_sizes (the heights at which blocks attend), head_channels (of an attention
    head; 0: one head), attend_always (every decoder block at those heights attends, as in ADM;
    otherwise the last); scale_shift (conditioning scales too, as in ADM); rescale (residual sums
    over sqrt 2); filter ("box" or "fir") and project_resampled (1x1 convolution on the shortcut of
    resampling blocks); residual_input (a downsampled image is added at every level, as in NCSN++);
    embedding (of `EMBEDDINGS`) of embedding_channels (0: `channels`, for Fourier features twice
    that, as in NCSN++); labels_first (labels enter before the MLP on the noise's embedding, with a
    bias; otherwise after it, without, as in ADM; augmentation enters before it in both); epsilon
    (of GroupNorm); dropout (rng "dropout" when train=True), dtype (compute; parameters, norms and
    softmax are float32), remat ("none", "full", "dots"); identity_attention (blocks, "middle_0" or
    "decode_1_2", whose attention map is the identity, for guidance away from them); conditions
    (what it can be told besides the label).

    Called with taps=(name, ...) it returns (output, {name: that block's output [B, h, w, C]}).
    Blocks are called, in this order, "encode_L_i" (the i-th of level L, which "halve_L" leads to),
    "middle_0", "middle_1", "decode_L_i" ("double_L"). Raises UsageError for other taps.
    """

    num_classes: int
    out_channels: int
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_sizes: tuple[int, ...] = (16,)
    head_channels: int = 0
    attend_always: bool = False
    scale_shift: bool = False
    rescale: bool = True
    filter: str = "box"
    project_resampled: bool = True
    residual_input: bool = False
    embedding: str = "endpoint"
    embedding_channels: int = 0
    labels_first: bool = True
    epsilon: float = 1e-6
    augment_dim: int = 0
    dropout: float = 0.0
    time_scale: float = 1.0
    dtype: str = "float32"
    remat: str = "none"
    identity_attention: tuple[str, ...] = ()
    conditions: Conditions = ()

    @property
    def class_scale(self) -> float:
        """What a class's row is multiplied by: as a one-hot vector of unit variance, or not."""
        return math.sqrt(self.num_classes) if self.labels_first else 1.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Any,
        *,
        augment: jax.Array | None = None,
        train: bool = False,
        taps: tuple[str, ...] = (),
    ) -> Any:
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        self._check(x.shape)
        dtype = compute_dtype(self.dtype)
        embedding = self._embed(noise, condition, augment, dtype)
        block_class = rematerialised(Block, self.remat)
        attending: set[str] = set()
        outputs: dict[str, jax.Array] = {}

        def block(
            h: jax.Array, features: int, name: str, *, attend: bool = False, resample: str = ""
        ) -> jax.Array:
            attending.update([name] if attend else [])
            outputs[name] = block_class(
                features,
                attend,
                resample,
                self.filter,
                self.scale_shift,
                self.rescale,
                self.project_resampled,
                self.head_channels,
                self.dropout,
                train,
                dtype,
                name in self.identity_attention,
                self.epsilon,
                name=name,
            )(h, embedding)
            return outputs[name]

        widths = [self.channels * multiplier for multiplier in self.multipliers]
        attends = [x.shape[1] >> level in self.attention_sizes for level in range(len(widths))]
        picture = x.astype(dtype)
        h = _conv(self.channels, 3, "in", dtype)(picture)
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h = block(h, h.shape[-1], f"halve_{level}", resample="halve")
                if self.residual_input:
                    picture = self._residual(picture, h.shape[-1], f"picture_{level}", dtype)
                    h = picture = (h + picture) * math.sqrt(0.5)
                skips.append(h)
            for i in range(self.blocks):
                h = block(h, width, f"encode_{level}_{i}", attend=attends[level])
                skips.append(h)
        h = block(h, widths[-1], "middle_0", attend=True)
        h = block(h, widths[-1], "middle_1")
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = block(h, h.shape[-1], f"double_{level}", resample="double")
            for i in range(self.blocks + 1):
                attend = attends[level] and (self.attend_always or i == self.blocks)
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"decode_{level}_{i}", attend=attend)
        for name in self.identity_attention:
            if name not in attending:
                raise unknown("model.identity_attention", name, attending)
        h = nn.silu(_norm(h, "norm_out", dtype, self.epsilon))
        out = _conv(self.out_channels, 3, "out", dtype, _ZERO)(h).astype(jnp.float32)
        return (out, tapped(outputs, taps)) if taps else out

    def _embed(
        self, noise: jax.Array, condition: Any, augment: jax.Array | None, dtype: Any
    ) -> jax.Array:
        """The conditioning vector [B, 4 * channels], after its last non-linearity."""
        width, h = 4 * self.channels, self._features(noise)
        if self.augment_dim:
            if augment is None:
                augment = jnp.zeros((noise.shape[0], self.augment_dim))
            dense = nn.Dense(
                h.shape[-1], use_bias=False, kernel_init=_ZERO, dtype=dtype, name="augment"
            )
            h = h + dense(augment.astype(dtype))
        if self.labels_first:
            h = h + self._told(condition, noise.shape[0], h.shape[-1], dtype)
        h = nn.Dense(width, kernel_init=_KERNEL, dtype=dtype, name="noise_hidden")(h)
        h = nn.Dense(width, kernel_init=_KERNEL, dtype=dtype, name="noise_out")(nn.silu(h))
        if not self.labels_first:
            h = h + self._told(condition, noise.shape[0], width, dtype)
        return nn.silu(h)

    def _features(self, noise: jax.Array) -> jax.Array:
        """The noise numbers' features, float32 [B, embedding_channels]."""
        usual = self.channels * (2 if self.embedding == "fourier" else 1)
        numbers, dim = self.time_scale * noise, self.embedding_channels or usual
        if self.embedding == "fourier":
            return sines_first(Fourier(dim, name=CONSTANTS)(numbers))
        if self.embedding == "endpoint":
            return sines_first(sinusoidal(numbers, dim, endpoint=True))
        return sinusoidal(numbers, dim)

    def _told(self, condition: Any, size: int, width: int, dtype: Any) -> jax.Array:
        """The embedding [B, width] of the label and of whatever else is told."""
        first, classes = self.labels_first, self.num_classes
        init = _KERNEL if first else nn.initializers.normal(1.0)
        dense = nn.Dense(width, use_bias=first, kernel_init=init, dtype=dtype, name="labels")

        def table(labels: jax.Array) -> jax.Array:
            if not classes:
                return jnp.zeros((size, width), dtype)
            return dense(self.class_scale * jax.nn.one_hot(labels, classes, dtype=dtype))

        return embed(condition, table, self.conditions, size, width=width, dtype=dtype)

    def _residual(self, picture: jax.Array, features: int, name: str, dtype: Any) -> jax.Array:
        """A convolution at full size, then the filter, which reads what that made of the edges."""
        pad = 1 + margin(self.filter)
        conv = nn.Conv(
            features,
            (3, 3),
            padding=((pad, pad), (pad, pad)),
            kernel_init=_KERNEL,
            dtype=dtype,
            name=name,
        )
        return halve(conv(picture), self.filter, padded=True)

    def _check(self, shape: tuple[int, ...]) -> None:
        multiple = 2 ** (len(self.multipliers) - 1)
        if len(shape) != 4 or shape[1] % multiple or shape[2] % multiple:
            raise invalid(
                "image size",
                shape[1:],
                f"(height, width, channels), height and width multiples of {multiple}",
                f"model.multipliers has {len(self.multipliers)} levels; use fewer, or resize.",
            )
        if self.filter not in FILTERS:
            raise unknown("model.filter", self.filter, FILTERS)
        if self.embedding not in EMBEDDINGS:
            raise unknown("model.embedding", self.embedding, EMBEDDINGS)


class NCSNpp(UNet):
    """NCSN++ (Song et al. 2021): Fourier features, FIR resampling and residual input; as `UNet`."""

    filter: str = "fir"
    residual_input: bool = True
    embedding: str = "fourier"


class ADM(UNet):
    """ADM (Dhariwal & Nichol 2021), as `UNet`: by default ImageNet-64's, 295.9M parameters."""

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    attend_always: bool = True
    scale_shift: bool = True
    rescale: bool = False
    project_resampled: bool = False
    embedding: str = "sinusoidal"
    labels_first: bool = False
    epsilon: float = 1e-5
