"""A small MLP denoiser for vectors (and for tiny images, flattened)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import NoiseEmbedding, compute_dtype, modulate, normalise
from jaxgen.nn.parallel import Columns, Dropout, Rows
from jaxgen.nn.stack import Taps, stacked


class Block(nn.Module):
    """Residual block: adaptive LayerNorm, two dense layers, and a gate that starts at zero."""

    width: int
    expansion: int
    dropout: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B, width], condition [B, width] (after its non-linearity) -> x [B, width]."""
        zeros = nn.initializers.zeros
        affine = nn.Dense(3 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")
        shift, scale, gate = jnp.split(affine(condition), 3, axis=-1)
        h = modulate(normalise(x).astype(self.dtype), shift, scale)
        h = nn.silu(Columns(self.expansion * self.width, dtype=self.dtype, name="expand")(h))
        h = Rows(self.width, dtype=self.dtype, name="contract")(h)
        return x + gate * Dropout(self.dropout, deterministic=not self.train)(h)


class MLP(nn.Module):
    """MLP denoiser: module(x, noise[B], condition) -> float32 of x's shape but `out_channels` last.

    x is [B, D], or [B, ..., C] whose trailing axes are flattened on the way in and restored on the
    way out. noise: the noise-level number (t in [0, 1]), times `time_scale` before the sinusoidal
    embedding. condition: labels int32 [B] in [0, num_classes]; num_classes is "no label"; out of
    range gives NaN; or several conditions (`jaxgen.nn.conditions`). The output is exactly zero at
    initialisation.

    Fields: width, depth (residual blocks), expansion (hidden width over width), dropout (rng
    "dropout" when train=True), dtype (compute; parameters are float32), scan (compile one block for
    all layers), remat ("none", "full", "dots") and conditions (what it can be told besides the
    label).

    Called with taps=(k, ...) it returns (output, {k: the features [B, width] after k blocks}), k
    from 1 to depth. Raises UsageError for other taps.
    """

    num_classes: int
    out_channels: int
    width: int = 256
    depth: int = 3
    expansion: int = 2
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"
    conditions: Conditions = ()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Any,
        *,
        train: bool = False,
        taps: Taps = (),
    ) -> Any:
        """Denoise x [B, ..., C] at noise [B], given a condition: [B, ..., out_channels]."""
        dtype = compute_dtype(self.dtype)
        c = NoiseEmbedding(self.width, self.time_scale, dtype=dtype, name="noise")(noise)
        table = nn.Embed(self.num_classes + 1, self.width, dtype=dtype, name="labels")
        told = embed(condition, table, self.conditions, x.shape[0], width=self.width, dtype=dtype)
        c = nn.silu(c + told)
        shape = (*x.shape[:-1], self.out_channels)
        h = x.reshape(x.shape[0], -1).astype(dtype)
        h = nn.Dense(self.width, dtype=dtype, name="in")(h)
        blocks = stacked(Block, self.depth, scan=self.scan, remat=self.remat, shared=("examples",))(
            self.width, self.expansion, self.dropout, train, dtype, name="blocks"
        )
        h, tapped = blocks(h, c, taps=taps)
        zeros = nn.initializers.zeros
        shift, scale = jnp.split(
            nn.Dense(2 * self.width, kernel_init=zeros, dtype=dtype, name="modulation")(c), 2, -1
        )
        h = modulate(normalise(h).astype(dtype), shift, scale)
        h = nn.Dense(math.prod(shape[1:]), kernel_init=zeros, dtype=dtype, name="out")(h)
        out = h.reshape(shape).astype(jnp.float32)
        return (out, tapped) if taps else out
