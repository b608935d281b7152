"""CAN: a DiT some of whose weights are made from the condition, anew for each example.

Cai et al., "Condition-Aware Neural Network for Controlled Image Generation" (2024), section 3: a
layer's kernel is a static one plus one that is generated from the condition's embedding, in the
embedding of patches and in the output of attention, which they found to matter.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import size
from jaxgen.nn import dit
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.stack import Stack


class Generated(nn.Module):
    """A dense layer whose kernel is the condition's too; cut: its inputs are, along `tensor`.

    An example's kernel is W + sum over r of a_r(c) W_r, a linear in its condition c. The W_r are 0
    at first, so that it starts as the layer with W alone.
    """

    features: int
    rank: int
    dtype: Any
    cut: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B * N, D], condition [B, width] -> [B * N, features]."""
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        generator = self.param("generator", zeros, (self.rank, *shape), jnp.float32)
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        mix = nn.Dense(self.rank, kernel_init=init, dtype=self.dtype, name="mix")(condition)
        kernels = kernel + jnp.tensordot(mix.astype(jnp.float32), generator, 1)
        rows = x.astype(self.dtype).reshape(condition.shape[0], -1, x.shape[-1])
        out = (rows @ kernels.astype(self.dtype)).reshape(-1, self.features)
        if self.cut and size("tensor") > 1:
            out = jax.lax.psum(out, "tensor")
        return out + bias.astype(self.dtype)


class Block(dit.Block):
    """DiT's block with a generated output of attention."""

    rank: int

    def _project(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        return Generated(self.width, self.rank, self.dtype, cut=True, name="proj")(h, condition)


class CAN(dit.DiT):
    """CAN: a `DiT` whose patches' embedding and attention's outputs depend on the condition.

    rank: how many kernels a generated one is a sum of. The paper's is a linear function of the
    whole embedding, rank = width; a layer then has width + 1 times its parameters. adaLN-Zero
    stays, as in the paper's best networks.
    """

    rank: int = 8

    def _embed(self, patches: jax.Array, c: jax.Array) -> jax.Array:
        dtype = compute_dtype(self.dtype)
        return Generated(self.width, self.rank, dtype, name="patch")(patches, c)

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(Block, rank=self.rank)
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if self.rank < 1:
            raise invalid("model.rank", self.rank, "rank >= 1")
