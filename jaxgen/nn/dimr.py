"""DiMR: branches at several resolutions, a transformer at the lowest, convolutions above it.

Liu et al., "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and
Time-Dependent Layer Normalization" (2024), section 3: a branch's features join the tokens of the
next, of patches half as large; the time is told by norms whose scale and shift go between two.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import dit
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import compute_dtype, normalise
from jaxgen.nn.parallel import Columns, Depthwise, Dropout, Rows
from jaxgen.nn.positions import sin_cos_2d
from jaxgen.nn.resample import double
from jaxgen.nn.stack import stacked

XAVIER = nn.initializers.xavier_uniform()


class TimeNorm(nn.Module):
    """LayerNorm (TD-LN) whose scale and shift are s p_1 + (1 - s) p_2, s = sigmoid(w t + b).

    4 C + 2 parameters, whatever the time's embedding would be.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """x [B, n, C], time [B] -> float32 [B, n, C]."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (2, x.shape[-1])
        scales = self.param("scales", ones, shape, jnp.float32)
        shifts = self.param("shifts", zeros, shape, jnp.float32)
        weight, bias = (self.param(n, i, ()) for n, i in (("weight", ones), ("bias", zeros)))
        share = nn.sigmoid(weight * time.astype(jnp.float32) + bias)
        shares = jnp.stack([share, 1 - share], axis=1)
        scale, shift = ((shares @ a)[:, None] for a in (scales, shifts))
        return normalise(x, epsilon=self.epsilon) * scale + shift


class Attend(dit.Block):
    """DiT's attention and MLP, each behind a `TimeNorm`."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None = None,
    ) -> jax.Array:
        """x [B * N, width], condition: the time [B] -> x [B * N, width]."""
        images = len(condition)
        drop = Dropout(self.dropout, deterministic=not self.train)

        def norm(name: str) -> jax.Array:
            h = TimeNorm(name=name)(x.reshape(images, -1, self.width), condition)
            return h.astype(self.dtype).reshape(x.shape)

        h = norm("attention_norm")
        x = x + drop(self._attention(h, condition, angles, alone), images)
        return x + drop(self._mlp(norm("mlp_norm"), images), images)


class ConvNeXt(nn.Module):
    """A depthwise convolution, a `TimeNorm` and an MLP on tokens (Liu et al. 2022, figure 4)."""

    width: int
    ratio: float
    dropout: float
    train: bool
    dtype: Any
    grid: tuple[int, int]
    kernel: int
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, angles: None) -> jax.Array:
        """x [B * N, width], time [B] -> x [B * N, width]."""
        h = x.reshape(len(time), -1, self.width)
        h = Depthwise(self.kernel, self.grid, self.lowering, name="spatial")(h)
        h = TimeNorm(name="norm")(h, time).astype(self.dtype).reshape(x.shape)
        init = dict(kernel_init=XAVIER, dtype=self.dtype)
        h = nn.gelu(Columns(int(self.ratio * self.width), name="expand", **init)(h))
        h = Rows(self.width, name="contract", **init)(h)
        return x + Dropout(self.dropout, deterministic=not self.train)(h, len(time))


class DiMR(nn.Module):
    """DiMR: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    Arguments and shared fields as `jaxgen.nn.dit.DiT`'s. depths, widths: of the branches, lowest
    resolution first; the last has patches of `patch`, each before it of twice the size. heads: of
    the first branch, the transformer, to whose tokens the label is added. kernel: of convolutions,
    odd. The time is told by norms alone, times `time_scale`. The output is exactly 0 at first. The
    paper's losses of all branches are not here, and the default sizes are ours.
    """

    num_classes: int
    out_channels: int
    depths: tuple[int, ...] = (12, 6)
    widths: tuple[int, ...] = (384, 192)
    heads: int = 6
    patch: int = 2
    mlp_ratio: float = 4.0
    kernel: int = 7
    dropout: float = 0.0
    time_scale: float = 1.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    attention: str = "auto"
    conditions: Conditions = ()
    lowering: str = "patches"

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *, train: bool = False
    ) -> jax.Array:
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        dtype, images, time = compute_dtype(self.dtype), len(x), self.time_scale * noise
        self._check(x.shape)
        dense = functools.partial(nn.Dense, kernel_init=XAVIER, dtype=dtype)
        options: Any = dict(scan=self.scan, remat=self.remat, shared=("examples", "places"))
        h: jax.Array | None = None
        for n, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            patch = self.patch * 2 ** (len(self.depths) - 1 - n)
            rows, columns = grid = dit.grid(x.shape, patch)
            tokens = dense(width, name=f"patch_{n}")(dit.patchify(x.astype(dtype), patch))
            fields = self.dropout, train, dtype
            if h is None:
                tokens = self._first(tokens, condition, images, grid, dtype)
                stack = stacked(Attend, depth, **options)(
                    width, self.heads, self.mlp_ratio, False, False, False, *fields,
                    self.attention, 1e-6, name=f"branch_{n}_blocks",
                )  # fmt: skip
            else:
                above = double(h).reshape(-1, h.shape[-1])
                tokens = dense(width, name=f"join_{n}")(jnp.concatenate([tokens, above], -1))
                stack = stacked(ConvNeXt, depth, **options)(
                    width, self.mlp_ratio, *fields, grid, self.kernel, self.lowering,
                    name=f"branch_{n}_blocks",
                )  # fmt: skip
            h = stack(tokens, time, None, places=rows * columns).reshape(images, *grid, width)
        assert h is not None
        h = TimeNorm(name="norm")(h.reshape(images, -1, h.shape[-1]), time).astype(dtype)
        zeros, features = nn.initializers.zeros, self.patch**2 * self.out_channels
        h = nn.Dense(features, kernel_init=zeros, dtype=dtype, name="out")(h)
        return dit.unpatchify(h, images, rows, columns, self.patch).astype(jnp.float32)

    def _first(
        self, tokens: jax.Array, condition: Any, images: int, grid: tuple[int, int], dtype: Any
    ) -> jax.Array:
        """The lowest branch's tokens [B * N, width] with positions and label."""
        width, rows = self.widths[0], self.num_classes + 1
        init = nn.initializers.normal(0.02)
        table = nn.Embed(rows, width, embedding_init=init, dtype=dtype, name="labels")
        told = embed(condition, table, self.conditions, images, width=width, dtype=dtype)
        h = tokens.reshape(images, -1, width) + sin_cos_2d(*grid, width).astype(dtype)
        return (h + told[:, None]).reshape(-1, width)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(self.depths) != len(self.widths) or min(self.depths, default=0) < 1:
            raise invalid("model.depths", self.depths, f"1 or more for each of {self.widths}")
        if self.widths[0] % (4 * self.heads):
            allowed = f"first a multiple of 4 x heads = {4 * self.heads}"
            raise invalid("model.widths", self.widths, allowed)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise invalid("model.kernel", self.kernel, "odd numbers from 1")
