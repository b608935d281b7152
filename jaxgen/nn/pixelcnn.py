"""Gated PixelCNN: masked convolutions in two stacks, so that no earlier pixel is out of sight.

van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), figure 2 and
eq. 4; the masks of channels and the two last layers are van den Oord et al.'s "Pixel Recurrent
Neural Networks" (2016), section 3.4 and table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.nn.convolution import convolve
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.parallel import Dropout

PyTree = Any


def channel_mask(inputs: int, outputs: int, channels: int, *, strict: bool) -> np.ndarray:
    """Which of `inputs` features each of `outputs` may see: float32 [inputs, outputs].

    Features are cut into `channels` equal groups. strict (mask A): the groups of earlier channels;
    else (mask B) also its own.
    """
    group_in = np.arange(inputs) * channels // inputs
    group_out = np.arange(outputs) * channels // outputs
    seen = np.less if strict else np.less_equal
    return seen(group_in[:, None], group_out[None]).astype(np.float32)


class Masked(nn.Module):
    """A convolution whose kernel is multiplied by a constant mask (None: all ones)."""

    features: int
    kernel: tuple[int, int]
    pad: tuple[tuple[int, int], tuple[int, int]]
    mask: Any
    dtype: Any
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.mask is not None:
            kernel = kernel * self.mask
        kernel = kernel.astype(self.dtype)
        out = convolve(x.astype(self.dtype), kernel, pad=self.pad, lowering=self.lowering)
        return out + bias.astype(self.dtype)


class Layer(nn.Module):
    """One layer of both stacks; the first sees no current pixel (A) and has no residual."""

    width: int
    size: int
    channels: int
    rows: int
    first: bool
    dropout: float
    train: bool
    dtype: Any
    lowering: str

    def setup(self) -> None:
        """Name the convolutions and the labels' biases."""
        reach, twice = self.size // 2, 2 * self.width

        def masked(features: int, kernel: Any, pad: Any, mask: Any) -> Masked:
            return Masked(features, kernel, pad, mask, self.dtype, self.lowering)

        # Rows above alone in the first layer, whose output is then one row too long; later the
        # features of a row hold only what is above it, so a row may see itself.
        height = reach if self.first else reach + 1
        self.down = masked(twice, (height, self.size), ((reach, 0), (reach, reach)), None)
        inputs = self.rows if self.first else self.width
        half = channel_mask(inputs, self.width, self.channels, strict=self.first)
        mask = np.ones((1, reach + 1, inputs, twice), np.float32)
        mask[:, -1] = np.concatenate([half, half], axis=1)
        self.right = masked(twice, (1, reach + 1), ((0, 0), (reach, 0)), mask)
        self.across = masked(twice, (1, 1), ((0, 0), (0, 0)), None)
        mask = channel_mask(self.width, self.width, self.channels, strict=False)
        self.residual = masked(self.width, (1, 1), ((0, 0), (0, 0)), mask)
        self.drop = Dropout(self.dropout, deterministic=not self.train)

    def vertical(self, v: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(v of the next layer, what the horizontal stack adds): [B, H, W, p], [B, H, W, 2p]."""
        v = self.down(v)[:, : v.shape[1]] + bias[:, None, None]
        return self._gate(v), self.across(v)

    def horizontal(self, h: jax.Array, from_above: jax.Array, bias: jax.Array) -> jax.Array:
        """h of the next layer [B, H, W, p]; rows do not mix."""
        out = self.residual(self._gate(self.right(h) + from_above + bias[:, None, None]))
        return out if self.first else h + out

    def _gate(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(x, 2, axis=-1)
        return self.drop(jnp.tanh(value) * nn.sigmoid(gate))


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN: module(tokens[B, N], labels[B]) -> float32 [B, N, outputs].

    tokens: int32 examples of `shape` (H, W, C) or (h, w) flattened row by row, channels last; row i
    of the result depends on the label and on tokens [0, i). labels: int32 in [0, num_classes],
    the last being "no label"; out of range gives NaN. The network sees a level as a number in
    [-1, 1], or through an embedding of `embed` features where levels have no order (codes).

    Fields: depth (layers), width (p, features of each stack; a multiple of the channels), kernel
    and first (n of the n x n masked convolutions, odd), hidden (width of the last two layers, None:
    p), dropout (on the gates' outputs, rng "dropout" when train=True), dtype (compute; parameters
    and logits are float32), lowering ("patches" or "direct", see `jaxgen.nn.convolution`). The
    paper's for ImageNet: depth=20, width=384, kernel=5 (`imagenet`); it gives no count.

    Sampling computes the vertical stack once a row and the horizontal one on a row at a time.
    """

    num_classes: int
    levels: int
    shape: tuple[int, ...]
    depth: int = 8
    width: int = 64
    kernel: int = 5
    first: int = 7
    hidden: int | None = None
    embed: int = 0
    outputs: int | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    lowering: str = "patches"

    @property
    def group(self) -> int:
        """Tokens that a row of the output is about: one."""
        return 1

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        labels: jax.Array,
        from_above: tuple[jax.Array, ...] | None = None,
        *,
        train: bool = False,
        stacks: str = "both",
    ) -> Any:
        """Logits float32 [B, N, outputs] of tokens [B, N] under labels [B].

        stacks="vertical": instead, for each layer what its horizontal stack adds, [B, H, W, 2p].
        stacks="horizontal": tokens of one row [B, W C] and from_above [B, 1, W, 2p] of that row.
        """
        self._check()
        dtype, channels = compute_dtype(self.dtype), self._channels
        x = self._features(tokens, dtype)
        layers = [
            Layer(
                self.width,
                self.kernel if i else self.first,
                channels,
                x.shape[-1],
                i == 0,
                self.dropout,
                train,
                dtype,
                self.lowering,
                name=f"layer_{i}",
            )
            for i in range(self.depth)
        ]
        init = nn.initializers.normal(0.02)
        table = nn.Embed(
            self.num_classes + 1,
            self.depth * 4 * self.width,
            embedding_init=init,
            dtype=dtype,
            name="labels",
        )
        bias = table(labels).reshape(-1, self.depth, 2, 2 * self.width)
        if stacks != "horizontal":
            v, above = x, []
            for i, layer in enumerate(layers):
                v, added = layer.vertical(v, bias[:, i, 0])
                above.append(added)
            from_above = tuple(above)
        if stacks == "vertical":
            return from_above
        assert from_above is not None
        h = x
        for i, layer in enumerate(layers):
            h = layer.horizontal(h, from_above[i], bias[:, i, 1])
        return self._last(h, dtype).reshape(*tokens.shape, -1).astype(jnp.float32)

    def decoder(
        self, params: PyTree, labels: jax.Array
    ) -> tuple[PyTree, Callable[..., tuple[jax.Array, PyTree]]]:
        """(memory, step): step(memory, tokens[B, N], i) -> (row i [B, outputs], memory).

        To be called for i = 0, 1, ... in turn. memory: what the rows above add to the current row,
        [B, 1, W, 2p] for each layer, computed anew at the first element of each row.
        """
        width, channels = self.shape[1], self._channels
        line = width * channels

        def run(*args: Any, **options: Any) -> Any:
            return self.apply({"params": params}, *args, **options)

        dtype = compute_dtype(self.dtype)
        empty = jnp.zeros((labels.shape[0], 1, width, 2 * self.width), dtype)
        memory = (empty,) * self.depth

        def step(memory: PyTree, tokens: jax.Array, i: jax.Array) -> tuple[jax.Array, PyTree]:
            row, place = i // line, i % line

            def renew() -> PyTree:
                above = run(tokens, labels, stacks="vertical")
                return tuple(jax.lax.dynamic_slice_in_dim(a, row, 1, axis=1) for a in above)

            memory = jax.lax.cond(place == 0, renew, lambda: memory)
            mine = jax.lax.dynamic_slice_in_dim(tokens, row * line, line, axis=1)
            out = run(mine, labels, memory, stacks="horizontal")
            return jax.lax.dynamic_index_in_dim(out, place, 1, keepdims=False), memory

        return memory, step

    @property
    def _channels(self) -> int:
        return self.shape[2] if len(self.shape) == 3 else 1

    def _features(self, tokens: jax.Array, dtype: Any) -> jax.Array:
        """[B, H W C] -> [B, H, W, C max(embed, 1)], a channel's features side by side."""
        channels = self._channels
        tokens = tokens.reshape(tokens.shape[0], -1, self.shape[1], channels)
        if not self.embed:
            return (tokens * (2 / max(self.levels - 1, 1)) - 1.0).astype(dtype)
        init = nn.initializers.normal(1.0)
        table = nn.Embed(
            channels * self.levels, self.embed, embedding_init=init, dtype=dtype, name="tokens"
        )
        h = table(tokens + jnp.arange(channels) * self.levels)
        return h.reshape(*tokens.shape[:3], channels * self.embed)

    def _last(self, h: jax.Array, dtype: Any) -> jax.Array:
        """Two 1x1 layers after ReLUs: [B, H, W, p] -> [B, H, W, C outputs]."""
        channels, hidden = self._channels, self.hidden or self.width
        point = ((1, 1), ((0, 0), (0, 0)))
        for name, features in (
            ("hidden", hidden),
            ("out", channels * (self.outputs or self.levels)),
        ):
            mask = channel_mask(h.shape[-1], features, channels, strict=False)
            h = Masked(features, *point, mask, dtype, self.lowering, name=name)(nn.relu(h))
        return h

    def _check(self) -> None:
        if len(self.shape) not in (2, 3):
            raise invalid("model.shape", self.shape, "(rows, columns) or (height, width, channels)")
        for name, value in (("kernel", self.kernel), ("first", self.first)):
            if value < 3 or value % 2 == 0:
                raise invalid(f"model.{name}", value, "odd numbers >= 3")
        if self.depth < 1:
            raise invalid("model.depth", self.depth, "layers >= 1")
        for name, value in (("width", self.width), ("hidden", self.hidden or self.width)):
            if value % self._channels:
                raise invalid(f"model.{name}", value, f"multiples of {self._channels} channels")


def imagenet(
    *,
    num_classes: int,
    levels: int,
    shape: tuple[int, ...],
    dropout: float = 0.0,
    dtype: str = "float32",
    lowering: str = "direct",
) -> GatedPixelCNN:
    """The paper's network for ImageNet (section 3.1): 20 layers of 384 features, 5x5."""
    return GatedPixelCNN(
        num_classes,
        levels,
        tuple(shape),
        depth=20,
        width=384,
        kernel=5,
        dropout=dropout,
        dtype=dtype,
        lowering=lowering,
    )
