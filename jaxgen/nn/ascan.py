"""AsCAN: stages of convolutions and attention by a string, more of the latter the later the stage.

Kag et al., "AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and
Generation" (2024), section 3: in "CCT" two convolutional blocks (an inverted bottleneck whose
expansion is the 3x3 convolution, Tan & Le 2021) and then a transformer block.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import dit
from jaxgen.nn.convolution import convolve
from jaxgen.nn.layers import compute_dtype, modulate, normalise
from jaxgen.nn.parallel import Dropout, Rows, on_grid, share
from jaxgen.nn.stack import Stack, Taps, stacked
from jaxgen.nn.stages import XAVIER, Stages


class Conv(nn.Module):
    """A 3x3 convolution to more channels, GELU and back, modulated as DiT's blocks are."""

    width: int
    ratio: float
    dropout: float
    train: bool
    dtype: Any
    grid: tuple[int, int]
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, angles: None) -> jax.Array:
        """x [B * N, width], condition [B, width] -> x [B * N, width]."""
        images, zeros = len(condition), nn.initializers.zeros
        affine = nn.Dense(3 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")
        shift, scale, gate = jnp.split(affine(condition)[:, None], 3, axis=-1)
        h = normalise(x).astype(self.dtype).reshape(images, -1, self.width)
        h = Expand(int(self.ratio * self.width), self.grid, self.lowering, name="expand")(
            modulate(h, shift, scale)
        )
        h = nn.gelu(h, approximate=True)
        h = Rows(self.width, kernel_init=XAVIER, dtype=self.dtype, name="contract")(h)
        h = Dropout(self.dropout, deterministic=not self.train)(h)
        return x + (gate * h).reshape(x.shape)


class Expand(nn.Module):
    """A 3x3 convolution of tokens [B, n, C] on their grid, its channels cut along `tensor`."""

    features: int
    grid: tuple[int, int]
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, C] -> [B, n, this device's features]."""
        local = share("features", self.features)
        kernel = self.param("kernel", XAVIER, (3, 3, x.shape[-1], local), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (local,), jnp.float32)
        pad = ((1, 1), (1, 1))
        conv = functools.partial(
            convolve, kernel=kernel.astype(x.dtype), pad=pad, lowering=self.lowering
        )
        return on_grid(x, self.grid, conv) + bias.astype(x.dtype)


class AsCAN(Stages):
    """AsCAN: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    As `nn.stages.Stages`. stages: a string of "C" and "T" for each, down and up again. Attention
    is of heads of `head_channels`, to all pixels of its stage, which is what it costs. Blocks start
    as the identity. The default stages are ours: the paper's text has the rule, not a table that
    we had at hand.
    """

    width: int = 128
    stages: tuple[str, ...] = ("CCC", "CCT", "TTT", "CTT", "CCT")
    head_channels: int = 64
    attention: str = "auto"

    def _depths(self) -> tuple[int, ...]:
        return tuple(map(len, self.stages))

    def _stacks(
        self, number: int, width: int, shape: tuple[int, int], train: bool
    ) -> Sequence[Stack]:
        dtype = compute_dtype(self.dtype)
        fields = self.dropout, train, dtype
        heads = width // self.head_channels
        blocks: dict[str, Callable[..., nn.Module]] = {
            "C": functools.partial(Conv, width, self.mlp_ratio, *fields, shape, self.lowering),
            "T": functools.partial(
                dit.Block, width, heads, self.mlp_ratio, False, False, False, *fields,
                self.attention, 1e-6,
            ),
        }  # fmt: skip
        options: Any = dict(scan=self.scan, remat=self.remat, shared=("examples", "places"))
        return [
            stacked(blocks[kind], count, **options)(name=f"stage_{number}_{n}_{kind}_blocks")
            for n, (kind, count) in enumerate(runs(self.stages[number]))
        ]

    def _check(self, shape: tuple[int, ...], taps: Taps) -> None:
        for stage in self.stages:
            if set(stage) - set("CT"):
                raise invalid("model.stages", stage, 'strings of "C" and "T"')
        super()._check(shape, taps)
        if self.width % self.head_channels:
            allowed = f"multiples of head_channels={self.head_channels}"
            raise invalid("model.width", self.width, allowed)


def runs(stage: str) -> list[tuple[str, int]]:
    """A stage's string as (letter, how many in a row): "CCT" is [("C", 2), ("T", 1)]."""
    return [(kind, len(list(group))) for kind, group in itertools.groupby(stage)]
