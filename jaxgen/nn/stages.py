"""Denoisers in the form of a U: stages of blocks on tokens that are pixels, down and up again.

What DiCo and AsCAN share: between stages a convolution and a change of places for channels (pixel
unshuffle, shuffle), across the U a 1x1 convolution of what it joins.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import whole_examples
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.convolution import lowered
from jaxgen.nn.dit import grid, patchify, unpatchify
from jaxgen.nn.layers import NoiseEmbedding, compute_dtype, modulate, normalise
from jaxgen.nn.stack import Stack, Taps, check_taps

XAVIER = nn.initializers.xavier_uniform()


class Told(nn.Module):
    """DiT's condition, of noise and of all that is told, as vectors of some width."""

    num_classes: int
    width: int
    time_scale: float
    conditions: Conditions
    dtype: Any

    @nn.compact
    def __call__(self, noise: jax.Array, condition: Any) -> jax.Array:
        """noise [B], a condition -> [B, width], after its non-linearity."""
        width, dtype = self.width, self.dtype
        h = NoiseEmbedding(width, self.time_scale, dtype=dtype, name="noise")(noise)
        rows, init = self.num_classes + 1, nn.initializers.normal(0.02)
        table = nn.Embed(rows, width, embedding_init=init, dtype=dtype, name="labels")
        told = embed(condition, table, self.conditions, len(noise), width=width, dtype=dtype)
        return nn.silu(h + told)


class Stages(nn.Module):
    """module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    A subclass says how many blocks each stage has and what they are (`_depths`, `_stacks`), an odd
    number of stages. Arguments and shared fields as `jaxgen.nn.dit.DiT`'s. width: of the first
    stage, doubled with every halving of height and width; the last stage keeps the width of the one
    before. There is an embedding of noise and label for each width, no patch and no position. H
    and W must be multiples of 2 ** (stages // 2), else UsageError. At initialisation the output is
    exactly 0. lowering: of convolutions (`nn.convolution`), "direct" on accelerators, "patches" on
    CPU.

    taps: k from 1 to the number of blocks, [B, h w, width] after k of them.
    """

    num_classes: int
    out_channels: int
    width: int = 0
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    conditions: Conditions = ()
    lowering: str = "patches"

    def _depths(self) -> tuple[int, ...]:
        """How many blocks each stage has."""
        raise NotImplementedError

    def _stacks(
        self, number: int, width: int, shape: tuple[int, int], train: bool
    ) -> Sequence[Stack]:
        """A stage's blocks on images of a shape; each stack is called as DiT's."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *,
        train: bool = False, taps: Taps = (),
    ) -> Any:  # fmt: skip
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        dtype, levels, images = compute_dtype(self.dtype), len(self._depths()) // 2, x.shape[0]
        self._check(x.shape, taps)
        conv = functools.partial(
            nn.Conv, kernel_init=XAVIER, dtype=dtype, conv_general_dilated=lowered(self.lowering)
        )
        told = {}
        for level in range(levels + 1):
            width = self.width * 2**level
            vector = Told(
                self.num_classes, width, self.time_scale, self.conditions, dtype,
                name=f"told_{level}",
            )  # fmt: skip
            told[width] = vector(noise, condition)
        tapped: dict[Any, jax.Array] = {}
        stage = functools.partial(self._stage, told=told, train=train, taps=taps, tapped=tapped)
        h = conv(self.width, (3, 3), name="in")(x.astype(dtype))
        skips = []
        for level in range(levels):
            h = stage(h, level)
            skips.append(h)
            rows, columns, width = h.shape[1] // 2, h.shape[2] // 2, h.shape[3]
            h = conv(width // 2, (3, 3), use_bias=False, name=f"down_{level}")(h)
            h = patchify(h, 2).reshape(images, rows, columns, 2 * width)
        h = stage(h, levels)
        for level in reversed(range(levels)):
            rows, columns, width = h.shape[1:]
            h = conv(2 * width, (3, 3), use_bias=False, name=f"up_{level}")(h)
            h = unpatchify(h, images, rows, columns, 2)
            h = jnp.concatenate([h, skips[level]], -1)
            h = conv(self.width * 2 ** max(level, 1), (1, 1), name=f"join_{level}")(h)
            h = stage(h, 2 * levels - level)
        out = self._image(h, told[h.shape[-1]])
        return (out, tapped) if taps else out

    def _stage(
        self,
        h: jax.Array,
        number: int,
        *,
        told: dict[int, jax.Array],
        train: bool,
        taps: Taps,
        tapped: dict[Any, jax.Array],
    ) -> jax.Array:
        """Images [B, h, w, D] through the blocks of a stage; what is tapped goes into `tapped`."""
        _, rows, columns, width = shape = h.shape
        done, flat = sum(self._depths()[:number]), whole_examples(h).reshape(-1, width)
        for blocks in self._stacks(number, width, (rows, columns), train):
            inside = tuple(k - done for k in taps if 0 < k - done <= blocks.depth)
            flat, seen = blocks(flat, told[width], None, places=rows * columns, taps=inside)
            tapped.update({done + k: a for k, a in seen.items()})
            done += blocks.depth
        return whole_examples(flat.reshape(shape))

    def _image(self, h: jax.Array, c: jax.Array) -> jax.Array:
        zeros, dtype = nn.initializers.zeros, compute_dtype(self.dtype)
        affine = nn.Dense(2 * c.shape[1], kernel_init=zeros, dtype=dtype, name="modulation")(c)
        shift, scale = jnp.split(affine[:, None, None], 2, axis=-1)
        h = modulate(normalise(h).astype(dtype), shift, scale)
        last = nn.Conv(
            self.out_channels, (3, 3), kernel_init=zeros, dtype=dtype, name="out",
            conv_general_dilated=lowered(self.lowering),
        )  # fmt: skip
        return last(h).astype(jnp.float32)

    def _check(self, shape: tuple[int, ...], taps: Taps) -> None:
        depths = self._depths()
        if len(depths) % 2 == 0 or min(depths) < 1:
            raise invalid("model stages", depths, "an odd number of stages of 1 block or more")
        grid(shape, 2 ** (len(depths) // 2))
        if self.width < 2 or self.width % 2:
            raise invalid("model.width", self.width, "even numbers from 2")
        check_taps(taps, sum(depths))
