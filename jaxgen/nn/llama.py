"""Llama on image tokens: RMSNorm, SwiGLU, 2-D rotary positions, no biases; causal or bidirectional.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (2024),
LlamaGen; the block is Touvron et al. 2023's. LlamaGen's released code multiplies the class token's
queries and keys by zero where it means not to turn them: `zero_class_token`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import ops
from jaxgen.errors import invalid
from jaxgen.nn.layers import compute_dtype, fill
from jaxgen.nn.parallel import Columns, Dropout, Rows, self_attention, share
from jaxgen.nn.positions import rope_2d, rotate
from jaxgen.nn.stack import stacked
from jaxgen.ops import Causal

PyTree = Any

# The paper's table 1. With 16x16 tokens, 16384 codes and 1000 classes: 111, 343, 775, 1411 and
# 3096 million parameters.
SIZES: dict[str, dict[str, int]] = {
    "B": dict(depth=12, width=768, heads=12),
    "L": dict(depth=24, width=1024, heads=16),
    "XL": dict(depth=36, width=1280, heads=20),
    "XXL": dict(depth=48, width=1536, heads=24),
    "3B": dict(depth=24, width=3200, heads=32),
}


class RMSNorm(nn.Module):
    """x over its root mean square along the last axis, in float32, times a learned scale."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> [..., width] in the compute dtype."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        square = jnp.square(wide).mean(-1, keepdims=True)
        return (wide * jax.lax.rsqrt(square + 1e-5) * scale).astype(self.dtype)


class Block(nn.Module):
    """One pre-norm block on tokens as a matrix [B * N, width], or on one token with a cache."""

    width: int
    heads: int
    hidden: int
    causal: bool
    dropout: float
    train: bool
    dtype: Any
    implementation: str

    def setup(self) -> None:
        """Name the parts, which `__call__` and `step` share."""

        def dense(layer: Any, features: int) -> Any:
            init = nn.initializers.normal(0.02)
            return layer(features, use_bias=False, kernel_init=init, dtype=self.dtype)

        self.attention_norm = RMSNorm(self.dtype)
        self.qkv = dense(Columns, 3 * self.width)
        self.proj = dense(Rows, self.width)
        self.mlp_norm = RMSNorm(self.dtype)
        self.gate = dense(Columns, self.hidden)
        self.value = dense(Columns, self.hidden)
        self.contract = dense(Rows, self.width)
        self.drop = Dropout(self.dropout, deterministic=not self.train)

    def __call__(
        self, x: jax.Array, angles: jax.Array, weights: jax.Array | None = None
    ) -> jax.Array:
        """x [B * N, width], angles [N, head / 2], weights [N] of queries and keys -> x."""
        examples = x.shape[0] // angles.shape[0]
        qkv = self.qkv(self.attention_norm(x)).reshape(examples, angles.shape[0], -1)
        if weights is not None:
            # Of each head's query, key and value, which lie side by side.
            each = jnp.stack([weights, weights, jnp.ones_like(weights)], -1)[:, None, :, None]
            size = self.width // self.heads
            qkv = (qkv.reshape(*qkv.shape[:2], -1, 3, size) * each).reshape(qkv.shape)
        h = self_attention(
            qkv,
            heads=share("heads", self.heads),
            mask=Causal() if self.causal else None,
            angles=angles,
            implementation=self.implementation,
        )
        x = x + self.drop(self.proj(h.reshape(x.shape[0], -1)), examples)
        return x + self.drop(self._mlp(x), examples)

    def step(
        self,
        x: jax.Array,
        angles: jax.Array,
        cache: PyTree,
        position: jax.Array,
        weights: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """Token `position` alone: x [B, width], angles [N, D / 2], cache {"k", "v"} [B, H, N, D].

        weights [N]: of queries and keys. Returns x [B, width] and the cache with this token's key
        and value in its place.
        """
        shape = (x.shape[0], self.heads, 3, self.width // self.heads)
        qkv = self.qkv(self.attention_norm(x)).reshape(shape)
        q, k, v = (qkv[:, :, i, None] for i in range(3))
        if weights is not None:
            q, k = (a * weights[position].astype(a.dtype) for a in (q, k))
        angle = jax.lax.dynamic_slice_in_dim(angles, position, 1)
        new = {"k": rotate(k, angle), "v": v}
        cache = jax.tree.map(
            lambda old, n: jax.lax.dynamic_update_slice_in_dim(old, n, position, axis=2), cache, new
        )
        seen = jnp.arange(angles.shape[0]) <= position
        h = ops.attention(
            rotate(q, angle),
            cache["k"],
            cache["v"],
            scale=q.shape[-1] ** -0.5,
            mask=seen,
            implementation=self.implementation,
        )
        x = x + self.proj(h.reshape(-1, self.width))
        return x + self._mlp(x), cache

    def _mlp(self, x: jax.Array) -> jax.Array:
        h = self.mlp_norm(x)
        return self.contract(nn.silu(self.gate(h)) * self.value(h))


class Llama(nn.Module):
    """Llama: module(tokens[B, N], labels[B]) -> float32 logits [B, N, outputs].

    tokens: int32, an example of `shape` (h, w) or (H, W, C) flattened row by row, channels last.
    labels: int32 in [0, num_classes]; row num_classes of their table is "no label"; out of range
    gives NaN. The label's embedding is the first token of the sequence and is not turned.

    causal=True: the sequence is the label and all tokens but the last, and row i of the logits
    predicts token i from the label and tokens [0, i). `decoder` gives the same rows one by one with
    keys and values kept. causal=False: the sequence is the label and all tokens, every row sees
    everything, and row i of the logits belongs to token i itself: what masked and discrete
    diffusion models ask for. `extra` further input tokens, numbered from `levels`, are never
    predicted (extra=1: `levels` is the mask).

    Fields: levels (the vocabulary); outputs (None: levels); size ("B" to "3B", see `SIZES`), of
    which depth, width and heads are where they are 0 (set, they win); multiple (the MLP's hidden
    width, 8/3 width, is rounded up to it); dropout on the embeddings and on both branches of each
    block (rng "dropout" when train=True); dtype (compute; parameters, norms, softmax and logits are
    float32); scan, remat, attention as in `jaxgen.nn.dit.DiT`. At initialisation all logits are 0.
    zero_class_token: the label's queries and keys are zero in every layer, as in LlamaGen's
    released code and weights: it is attended to by a score of 0, and its own output is its value
    (or, with causal=False, the mean of all values). With channels, an embedding of the channel is
    added, since rotary angles are the place's alone.
    """

    num_classes: int
    levels: int
    shape: tuple[int, ...]
    size: str = "B"
    depth: int = 0
    width: int = 0
    heads: int = 0
    multiple: int = 256
    causal: bool = True
    extra: int = 0
    outputs: int | None = None
    zero_class_token: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    attention: str = "auto"

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, SIZES)
        super().__post_init__()

    @property
    def group(self) -> int:
        """Tokens that a row of the output is about: one."""
        return 1

    @nn.compact
    def __call__(self, tokens: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits float32 [B, N, outputs] of tokens [B, N] under labels [B]."""
        self._check(tokens.shape)
        dtype = compute_dtype(self.dtype)
        init = nn.initializers.normal(0.02)

        def embed(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, self.width, embedding_init=init, dtype=dtype, name=name)

        first = embed(self.num_classes + 1, "labels")(labels)[:, None]
        h = embed(self.levels + self.extra, "tokens")(tokens)
        if self._channels > 1:
            h = h + embed(self._channels, "channels")(jnp.arange(tokens.shape[1]) % self._channels)
        h = jnp.concatenate([first, h[:, :-1] if self.causal else h], axis=1)
        length = h.shape[1]
        h = Dropout(self.dropout, deterministic=not train)(h).reshape(-1, self.width)
        given = (self._angles(length), *self._weights(length, dtype))
        blocks = stacked(
            Block,
            self.depth,
            scan=self.scan,
            remat=self.remat,
            shared=("places",) * len(given),
        )(*self._block_fields(train), name="blocks")
        h = blocks(h, *given, places=length)
        h = RMSNorm(dtype, name="norm")(h).reshape(-1, length, self.width)
        h = h if self.causal else h[:, 1:]
        out = nn.Dense(
            self.outputs or self.levels,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=dtype,
            name="out",
        )
        return out(h.reshape(-1, self.width)).reshape(*tokens.shape, -1).astype(jnp.float32)

    def decoder(
        self, params: PyTree, labels: jax.Array
    ) -> tuple[PyTree, Callable[..., tuple[jax.Array, PyTree]]]:
        """(memory, step) for one-by-one decoding under labels [B]; causal=True only.

        step(memory, tokens[B, N], i) -> (row i of the logits [B, outputs], memory), to be called
        for i = 0, 1, ... in turn (i may be traced); of the tokens it reads number i - 1 alone.
        memory: for each layer {"k", "v"} [B, heads, N, head], of fixed size.
        """
        assert self.causal, "a bidirectional network has no order to decode in"
        dtype = compute_dtype(self.dtype)
        size = labels.shape[0]
        angles, weights = self._angles(self._length), self._weights(self._length, dtype)
        # Cut into layers here, outside the loop over tokens, so that no step copies weights.
        layers = [jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(self.depth)]
        layers = jax.tree.map(lambda a: a.astype(dtype) if a.ndim > 1 else a, layers)
        table, out = (
            params[n][k].astype(dtype) for n, k in (("tokens", "embedding"), ("out", "kernel"))
        )
        first = _rows(params["labels"]["embedding"], labels).astype(dtype)
        block = Block(*self._block_fields(train=False), parent=None)
        norm = RMSNorm(dtype, parent=None)
        empty = jnp.zeros((size, self.heads, self._length, self.width // self.heads), dtype)
        memory = tuple({"k": empty, "v": empty} for _ in range(self.depth))

        def step(memory: PyTree, tokens: jax.Array, i: jax.Array) -> tuple[jax.Array, PyTree]:
            last = jnp.maximum(i - 1, 0)
            h = _rows(table, jax.lax.dynamic_index_in_dim(tokens, last, 1, keepdims=False))
            if self._channels > 1:
                h = h + params["channels"]["embedding"][last % self._channels].astype(dtype)
            h = jnp.where(i == 0, first, h)
            kept = []
            for layer, cache in zip(layers, memory, strict=True):
                both = block.apply(
                    {"params": layer}, h, angles, cache, i, *weights, method=Block.step
                )
                h, cache = cast(tuple[jax.Array, PyTree], both)
                kept.append(cache)
            h = cast(jax.Array, norm.apply({"params": params["norm"]}, h))
            return (h @ out).astype(jnp.float32), tuple(kept)

        return memory, step

    @property
    def _channels(self) -> int:
        return self.shape[2] if len(self.shape) == 3 else 1

    @property
    def _length(self) -> int:
        return self.shape[0] * self.shape[1] * self._channels

    def _block_fields(self, train: bool) -> tuple[Any, ...]:
        hidden = -(-int(8 * self.width / 3) // self.multiple) * self.multiple
        dtype = compute_dtype(self.dtype)
        return (
            self.width,
            self.heads,
            hidden,
            self.causal,
            self.dropout,
            train,
            dtype,
            self.attention,
        )

    def _angles(self, length: int) -> jax.Array:
        """Rotary angles [length, head / 2] of the sequence: 0 for the label, then the tokens'."""
        angles = rope_2d(self.shape[0], self.shape[1], self.width // self.heads)
        angles = jnp.repeat(angles, self._channels, axis=0)
        return jnp.concatenate([jnp.zeros_like(angles[:1]), angles])[:length]

    def _weights(self, length: int, dtype: Any) -> tuple[jax.Array, ...]:
        """What queries and keys are multiplied by, ([length],), where that is not one."""
        return ((jnp.arange(length) > 0).astype(dtype),) if self.zero_class_token else ()

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(self.shape) not in (2, 3):
            raise invalid("model.shape", self.shape, "(rows, columns) or (height, width, channels)")
        if len(shape) != 2 or shape[1] != self._length:
            raise invalid("tokens", shape, f"[B, {self._length}], a flattened {self.shape}")
        if self.width % (4 * self.heads):
            raise invalid("model.width", self.width, f"multiples of 4 x heads = {4 * self.heads}")


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a table; NaN out of range, as flax's Embed."""
    return jnp.take(table, index, axis=0, mode="fill")
