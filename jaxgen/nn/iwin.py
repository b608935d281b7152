"""Iwin: attention in windows of distant patches, and a convolution that links neighbours.

Huo & Li, "Iwin Transformer: Hierarchical Vision Transformer using Interleaved Windows" (2025),
section 3: a window has every s-th row and column; patches of one window attend to each other, then
a depthwise convolution mixes neighbours, which are of different windows.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import dit
from jaxgen.nn.parallel import Depthwise, self_attention, values, whole_examples_only
from jaxgen.nn.stack import Stack


class Block(dit.Block):
    """DiT's block with attention in interleaved windows. grid: rows and columns of patches."""

    grid: tuple[int, int]
    window: int
    kernel: int
    lowering: str

    def _attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        whole_examples_only("with windows")
        qkv, options = self._qkv(x, len(condition), angles)
        windows = interleaved(qkv, self.grid, self.window)
        h = self_attention(windows, **options, implementation=self.implementation)
        h = together(h, self.grid, self.window)
        if alone is not None:
            h = jnp.where(alone, values(qkv, options["heads"]), h)
        h = h + Depthwise(self.kernel, self.grid, self.lowering, name="depthwise")(h)
        return self._project(h.reshape(-1, h.shape[-1]), condition)


def interleaved(h: jax.Array, grid: tuple[int, int], window: int) -> jax.Array:
    """Tokens [B, N, C] of a grid -> windows [B * N / window^2, window^2, C].

    A window's rows and columns are grid / window apart.
    """
    rows, columns = (side // window for side in grid)
    h = h.reshape(len(h), window, rows, window, columns, -1).transpose(0, 2, 4, 1, 3, 5)
    return h.reshape(-1, window**2, h.shape[-1])


def together(h: jax.Array, grid: tuple[int, int], window: int) -> jax.Array:
    """The inverse of `interleaved`."""
    rows, columns = (side // window for side in grid)
    h = h.reshape(-1, rows, columns, window, window, h.shape[-1]).transpose(0, 3, 1, 4, 2, 5)
    return h.reshape(len(h), grid[0] * grid[1], -1)


class Iwin(dit.DiT):
    """Iwin in a DiT: a `DiT` whose attention costs window^2 keys a patch, without positions.

    window: rows and columns of a window, a divisor of the grid's. kernel: of the convolution, odd;
    where (kernel - 1) / 2 >= grid / window - 1, a patch learns of all others in each block. rope is
    not offered, since windows are not of neighbours. lowering: "direct" on accelerators, "patches"
    on CPU (`nn.convolution.depthwise`). The paper's own networks are hierarchical and classify;
    this is their attention in a DiT's place, as in its section on generation.
    """

    window: int = 8
    kernel: int = 3
    lowering: str = "patches"

    def _positions(self, rows: int, columns: int) -> jax.Array:
        return jnp.zeros((rows * columns, self.width))

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(
            Block, grid=shape, window=self.window, kernel=self.kernel, lowering=self.lowering
        )
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        grid = dit.grid(shape, self.patch)
        if self.rope:
            raise invalid("model.rope", True, "False: a window's patches are not neighbours")
        if self.window < 1 or any(side % self.window for side in grid):
            raise invalid("model.window", self.window, f"a divisor of {grid[0]} and {grid[1]}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise invalid("model.kernel", self.kernel, "odd numbers from 1")
