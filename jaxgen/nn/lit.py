"""LiT: a DiT whose attention is linear in the number of tokens.

Wang et al., "LiT: Delving into a Simplified Linear Diffusion Transformer for Image Generation"
(2025), section 3: ReLU features of queries and keys, few heads, and a depthwise convolution of the
values beside. All else is DiT's and has its names, so that `start` inherits it from a trained DiT
and begins the attention anew; `families.diffusion.terms.hybrid` distils the DiT's predictions.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import places, position
from jaxgen.nn import dit
from jaxgen.nn.parallel import Depthwise, split
from jaxgen.nn.stack import Stack

EPSILON = 1e-6
"""Added to the normaliser, which is 0 where no feature of a query is above 0."""


class Block(dit.Block):
    """DiT's block with linear attention. grid: rows and columns of patches."""

    grid: tuple[int, int]
    kernel: int
    lowering: str

    def _attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        images = condition.shape[0]
        qkv, options = self._qkv(x, images, angles, "linear_qkv")
        q, k, v = split(qkv, **options)
        h = linear_attention(nn.relu(q), nn.relu(k), v)
        if alone is not None:
            h = jnp.where(alone, v, h)
        h, v = (a.transpose(0, 2, 1, 3).reshape(images, -1, qkv.shape[-1] // 3) for a in (h, v))
        h = h + Depthwise(self.kernel, self.grid, self.lowering, name="depthwise")(v)
        return self._rows("linear_proj")(h.reshape(-1, h.shape[-1]))


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q (sum over tokens of k^T v) / (q . sum of k), for features q, k and v [B, H, n, D], >= 0.

    Sums are in float32, over an example's tokens on all devices. Cost: n D^2 for a head, where a
    map costs n^2 D.
    """
    total, n = places(), k.shape[2]
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if total is not None:
        real = position("sequence") * n + jnp.arange(n) < total
        k = jnp.where(real[:, None], k, 0)
    products, normaliser = wide("bhnd,bhne->bhde", k, v), k.astype(jnp.float32).sum(2)
    if total is not None:
        products, normaliser = jax.lax.psum((products, normaliser), "sequence")
    out = wide("bhnd,bhde->bhne", q.astype(jnp.float32), products)
    weight = wide("bhnd,bhd->bhn", q.astype(jnp.float32), normaliser)
    return (out / (weight + EPSILON)[..., None]).astype(v.dtype)


class LiT(dit.DiT):
    """LiT: a `DiT` with linear attention.

    heads: few are as fast and better, says the paper (DiT's by default). kernel: of the depthwise
    convolution, odd. lowering: "direct" on accelerators, "patches" on CPU
    (`nn.convolution.depthwise`). There are no attention maps to look at; `attention` is not asked.
    """

    kernel: int = 5
    lowering: str = "patches"

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(Block, grid=shape, kernel=self.kernel, lowering=self.lowering)
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise invalid("model.kernel", self.kernel, "odd numbers from 1")
