"""U-ViT: time, label and patches are all tokens of one transformer with long skip connections.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (2023), figure 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import bert
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.long_skips import INIT, LongSkips
from jaxgen.nn.stack import Taps

# The paper's table 1: 44 and 58 (CIFAR-10, patch 2), 131 (ImageNet-64, patch 4), 287 and 501
# million parameters (ImageNet's 32x32x4 latents, patch 2).
SIZES: dict[str, dict[str, int]] = {
    "S": dict(depth=13, width=512, heads=8),
    "S-Deep": dict(depth=17, width=512, heads=8),
    "M": dict(depth=17, width=768, heads=12),
    "L": dict(depth=21, width=1024, heads=16),
    "H": dict(depth=29, width=1152, heads=16),
}


class Block(bert.Block):
    """BERT's block, pre-norm attention and MLP, that merges a skip first where there is one."""

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None = None) -> jax.Array:
        """x [B * length, width], skip [B, length, width] -> x [B * length, width]."""
        if skip is not None:
            both = jnp.concatenate([x, skip.reshape(x.shape)], axis=-1)
            x = nn.Dense(self.width, kernel_init=INIT, dtype=self.dtype, name="skip")(both)
        return super().__call__(x)


class UViT(LongSkips):
    """U-ViT: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    As `nn.long_skips.LongSkips`, with attention and an MLP in each block; size: "S/2" to "H/8". In
    the paper's code time_offset is 1, as time_scale, epsilon 1e-5, GELU exact, and conv=False at
    the largest.
    """

    table: ClassVar[Mapping[str, Mapping[str, int]]] = SIZES
    heads: int = 0
    mlp_ratio: float = 4.0
    attention: str = "auto"
    exact: bool = False

    def _block(self, length: int, train: bool) -> Callable[..., nn.Module]:
        return functools.partial(
            Block, self.width, self.heads, self.mlp_ratio, length, self.dropout, train,
            compute_dtype(self.dtype), self.attention, qkv_bias=False, epsilon=self.epsilon,
            exact=self.exact,
        )  # fmt: skip

    def _check(self, taps: Taps) -> None:
        super()._check(taps)
        if self.width % (2 * self.heads):
            raise invalid("model.width", self.width, f"multiples of 2 x heads = {2 * self.heads}")
