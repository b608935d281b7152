"""DiCo: a U-Net of convolutions alone, with DiT's modulation and a gate on each channel.

Ai et al., "DiCo: Revitalizing ConvNets for Scalable and Efficient Diffusion Modeling" (2025),
section 3: in the place of attention a 1x1, a depthwise 3x3 and a 1x1 convolution, before whose last
each channel is multiplied by a sigmoid of a linear function of all channels' means.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.mesh import places, position, size
from jaxgen.nn import dit
from jaxgen.nn.layers import compute_dtype, fill
from jaxgen.nn.parallel import Depthwise
from jaxgen.nn.stack import Stack, stacked
from jaxgen.nn.stages import Stages

# The authors' code. With 32x32x4 latents, learned sigma and 1000 classes 33.1, 130.0, 463.9 and
# 701.2 million parameters, to the last one those of their training logs; H, of which there is no
# log, has 1,037 million (the paper: 1 billion).
SIZES: dict[str, dict[str, Any]] = {
    "S": dict(width=128, depths=(5, 4, 4, 4, 4), mlp_ratio=2.0),
    "B": dict(width=256, depths=(5, 4, 4, 4, 4), mlp_ratio=2.0),
    "L": dict(width=352, depths=(9, 8, 9, 8, 9), mlp_ratio=2.0),
    "XL": dict(width=416, depths=(9, 9, 10, 9, 9), mlp_ratio=2.0),
    "H": dict(width=416, depths=(14, 12, 10, 12, 14), mlp_ratio=4.0),
}


class Block(dit.Block):
    """DiT's block with convolutions where it has attention. grid: rows and columns of pixels."""

    grid: tuple[int, int]
    lowering: str

    def _attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        h = self._columns(self.width, "value")(x)
        h = h.reshape(condition.shape[0], -1, h.shape[-1])
        h = nn.gelu(Depthwise(3, self.grid, self.lowering, name="depthwise")(h), approximate=True)
        means = pixel_mean(h)
        if size("tensor") > 1:
            means = jax.lax.all_gather(means, "tensor", axis=1, tiled=True)
        gate = nn.sigmoid(self._columns(self.width, "gate")(means))
        h = h * gate[:, None]
        return self._rows("proj")(h.reshape(-1, h.shape[-1]))


def pixel_mean(h: jax.Array) -> jax.Array:
    """The mean over an example's pixels, on all devices, of h [B, n, C]: [B, C]."""
    total, n = places(), h.shape[1]
    if total is None:
        return h.mean(1)
    real = position("sequence") * n + jnp.arange(n) < total
    return jax.lax.psum(jnp.where(real[:, None], h, 0).sum(1), "sequence") / total


class DiCo(Stages):
    """DiCo: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    As `nn.stages.Stages`; size: "S" to "H"; depths: how many blocks each stage has. Blocks start as
    the identity. GELU is approximated by tanh, as in DiT; theirs is exact.
    """

    mlp_ratio: float = 0.0
    size: str = "S"
    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, SIZES)
        super().__post_init__()

    def _depths(self) -> tuple[int, ...]:
        return tuple(self.depths)

    def _stacks(
        self, number: int, width: int, shape: tuple[int, int], train: bool
    ) -> Sequence[Stack]:
        block = functools.partial(Block, grid=shape, lowering=self.lowering)
        options: Any = dict(scan=self.scan, remat=self.remat, shared=("examples", "places"))
        made = stacked(block, self.depths[number], **options)(
            width, 1, self.mlp_ratio, False, False, False, self.dropout, train,
            compute_dtype(self.dtype), "", 1e-6, name=f"stage_{number}_blocks",
        )  # fmt: skip
        return (made,)
