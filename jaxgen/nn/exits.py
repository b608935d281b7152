"""An MLP denoiser with a way out after every layer, and a guess there of how wrong it would be.

Tang et al., "DeeDiff: Dynamic Uncertainty-Aware Early Exiting" (2023), for vectors and tiny images.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import NoiseEmbedding, modulate, normalise
from jaxgen.nn.mlp import Block

PyTree = Any


class Exit(nn.Module):
    """A layer's own output and its uncertainty, both of `size` numbers."""

    size: int

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h, condition [B, width] -> (output [B, size], u in (0, 1) [B, size])."""
        zeros = nn.initializers.zeros
        affine = nn.Dense(2 * h.shape[-1], kernel_init=zeros, name="modulation")(condition)
        shift, scale = jnp.split(affine, 2, axis=-1)
        out = nn.Dense(self.size, kernel_init=zeros, name="out")(
            modulate(normalise(h), shift, scale)
        )
        both = jnp.concatenate([normalise(h), condition], axis=-1)
        return out, nn.sigmoid(nn.Dense(self.size, name="uncertainty")(both))


class ExitMLP(nn.Module):
    """MLP with exits: module(x, noise [B], condition) is its last one, float32 of x's shape.

    x is [B, ..., C]; trailing axes are flattened and restored. condition: labels int32 [B] in
    [0, num_classes], num_classes is "no label", or several (`jaxgen.nn.conditions`). The output is
    zero at initialisation. Fields as `nn.mlp.MLP`'s; the layers and their exits are stacked on axis
    0 of "blocks" and "exits".
    """

    num_classes: int
    out_channels: int
    width: int = 256
    depth: int = 6
    expansion: int = 2
    time_scale: float = 1000.0
    conditions: Conditions = ()

    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *, train: bool = False
    ) -> jax.Array:
        """All layers, the last exit: [B, ..., out_channels]. There is no dropout to train with."""
        h, c, layers = self._begin(x, noise, condition)
        h, _ = jax.lax.scan(lambda h, layer: (self._block(layer, h, c), None), h, layers)
        return self._exit(jax.tree.map(lambda a: a[-1], layers), h, c, x)[0]

    def every(self, x: jax.Array, noise: jax.Array, condition: Any) -> tuple[jax.Array, jax.Array]:
        """All exits: (outputs, uncertainties), [depth, B, ..., out_channels] each."""
        h, c, layers = self._begin(x, noise, condition)

        def step(h: jax.Array, layer: PyTree) -> Any:
            h = self._block(layer, h, c)
            return h, self._exit(layer, h, c, x)

        return jax.lax.scan(step, h, layers)[1]

    def leave(
        self, x: jax.Array, noise: jax.Array, condition: Any, threshold: float | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(the output of the first exit whose mean u is below a threshold, layers used int32 [B]).

        An image that has left keeps its output. The loop over layers ends when the whole batch has
        left, so a batch costs its slowest image; a batch of one costs its own layers.
        """
        h, c, layers = self._begin(x, noise, condition)
        out = jnp.zeros((*x.shape[:-1], self.out_channels), jnp.float32)
        used = jnp.zeros(x.shape[0], jnp.int32)

        def body(state: Any) -> Any:
            number, h, out, used, left = state
            layer = jax.tree.map(lambda a: a[number], layers)
            h = self._block(layer, h, c)
            leaving, u = self._exit(layer, h, c, x)
            out = jnp.where(left.reshape(-1, *(1,) * (x.ndim - 1)), out, leaving)
            sure = u.reshape(x.shape[0], -1).mean(1) < threshold
            return number + 1, h, out, used + ~left, left | sure

        def unfinished(state: Any) -> jax.Array:
            return (state[0] < self.depth) & ~state[-1].all()

        start = (jnp.int32(0), h, out, used, jnp.zeros(x.shape[0], bool))
        _, _, out, used, _ = jax.lax.while_loop(unfinished, body, start)
        return out, used

    @nn.compact
    def _begin(
        self, x: jax.Array, noise: jax.Array, condition: Any
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        """(h [B, width], condition [B, width], parameters of layers and exits [depth, ...])."""
        c = NoiseEmbedding(self.width, self.time_scale, name="noise")(noise)
        table = nn.Embed(self.num_classes + 1, self.width, name="labels")
        told = embed(
            condition, table, self.conditions, x.shape[0], width=self.width, dtype=jnp.float32
        )
        c = nn.silu(c + told)
        h = nn.Dense(self.width, name="in")(x.reshape(x.shape[0], -1).astype(jnp.float32))

        def stack(block: nn.Module) -> Any:
            return lambda key: jax.vmap(lambda k: block.init(k, h[:1], c[:1])["params"])(
                jax.random.split(key, self.depth)
            )

        size = math.prod(x.shape[1:-1]) * self.out_channels
        blocks = self.param("blocks", stack(self._layer()))
        return h, c, (blocks, self.param("exits", stack(Exit(size, parent=None))))

    def _layer(self) -> Block:
        return Block(self.width, self.expansion, 0.0, False, jnp.float32, parent=None)

    def _block(self, layer: PyTree, h: jax.Array, c: jax.Array) -> jax.Array:
        out: Any = self._layer().apply({"params": layer[0]}, h, c)
        return out

    def _exit(
        self, layer: PyTree, h: jax.Array, c: jax.Array, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        shape = (*x.shape[:-1], self.out_channels)
        size = math.prod(shape[1:])
        outputs: Any = Exit(size, parent=None).apply({"params": layer[1]}, h, c)
        out, u = outputs
        return out.reshape(shape), u.reshape(shape)
