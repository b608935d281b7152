"""DiffiT: self-attention whose queries, keys and values depend on the time.

Hatamizadeh et al., "DiffiT: Diffusion Vision Transformers for Image Generation" (2024), section
3.2 and its latent model, section 3.4: each of the three is a linear function of a token plus one of
the time's embedding (with the label's added), and scores have a learned bias of relative positions.
There is no adaptive normalisation.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.nn import dit
from jaxgen.nn.layers import compute_dtype, normalise
from jaxgen.nn.parallel import Dropout, biased_attention, split, whole_examples_only
from jaxgen.nn.stack import Stack


class Block(dit.Block):
    """Attention and MLP on normalised tokens, each added. grid: rows and columns of patches."""

    grid: tuple[int, int]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None = None,
    ) -> jax.Array:
        """As DiT's, x [B * N, width], condition [B, width] -> x [B * N, width]."""
        images = condition.shape[0]
        drop = Dropout(self.dropout, deterministic=not self.train)
        h = normalise(x).astype(self.dtype)
        x = x + drop(self._timed_attention(h, condition, angles, alone), images)
        return x + drop(self._mlp(normalise(x).astype(self.dtype), images), images)

    def _timed_attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        whole_examples_only("with relative positions")
        time = self._columns(3 * self.width, "time_qkv")(condition)
        qkv, options = self._qkv(x, len(condition), angles)
        q, k, v = split(qkv + time[:, None], **options)
        bias = Relative(options["heads"], self.grid, name="relative")()
        h = biased_attention(q, k, v, bias)
        if alone is not None:
            h = jnp.where(alone, v, h)
        return self._rows("proj")(h.transpose(0, 2, 1, 3).reshape(-1, qkv.shape[-1] // 3))


class Relative(nn.Module):
    """A learned number for each head and each offset of two patches."""

    heads: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        """The biases, float32 [heads, N, N]."""
        rows, columns = self.grid
        y, x = (a.reshape(-1) for a in np.meshgrid(*map(np.arange, self.grid), indexing="ij"))
        down, right = (a[:, None] - a[None] + n - 1 for a, n in ((y, rows), (x, columns)))
        init = nn.initializers.truncated_normal(0.02)
        shape = ((2 * rows - 1) * (2 * columns - 1), self.heads)
        table = self.param("kernel", init, shape, jnp.float32)
        found = table[down * (2 * columns - 1) + right]
        return found.transpose(2, 0, 1).astype(jnp.float32)


class DiffiT(dit.DiT):
    """Latent DiffiT: a `DiT` that is told time and label through its attention alone.

    size: "XL/2" to "XL/8", the paper's one network. Relative positions are learned for one image
    size. `attention` is not asked: maps are computed by the plain formula. The output is exactly
    zero at initialisation, blocks are not the identity.
    """

    # 561 million parameters with 32x32x4 latents, patch 2, learned sigma and 1000 classes, as the
    # paper's table of ImageNet-256 says.
    table: ClassVar[dit.Sizes] = {"XL": dit.SIZES["XL"]}
    size: str = "XL/2"

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(Block, grid=shape)
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _image(self, h: jax.Array, c: jax.Array, rows: int, columns: int) -> jax.Array:
        """The last layer, the same at all times."""
        zeros, dtype = nn.initializers.zeros, compute_dtype(self.dtype)
        features: Any = self.patch**2 * self.out_channels
        h = nn.silu(normalise(h)).astype(dtype)
        h = nn.Dense(features, kernel_init=zeros, dtype=dtype, name="out")(h)
        return dit.unpatchify(h, c.shape[0], rows, columns, self.patch).astype(jnp.float32)
