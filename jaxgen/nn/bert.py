"""A bidirectional transformer on tokens or on bits, for masked and discrete diffusion models.

Chang et al., "MaskGIT" (2022): a BERT with the class as a token. Weber et al., "MaskBit" (2024):
the same on bits through a linear layer in place of the embedding table. Layers are normalised on
the way in (as in most of their successors), which leaves the parameters as many.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.layers import NoiseEmbedding, compute_dtype, fill
from jaxgen.nn.parallel import Columns, Dropout, Rows, own_places, self_attention, share
from jaxgen.nn.stack import stacked

# MaskGIT's transformer (section 4.1; 173M here, 227M with its tokenizer's 54M) and MaskBit's
# (table 4, 305M).
SIZES: dict[str, dict[str, int]] = {
    "maskgit": dict(depth=24, width=768, heads=8),
    "maskbit": dict(depth=24, width=1024, heads=16),
}


class Block(nn.Module):
    """Pre-norm attention and MLP on tokens kept as a matrix [B * N, width].

    epsilon: of the norms. exact: GELU itself in the place of its approximation by tanh.
    """

    width: int
    heads: int
    mlp_ratio: float
    length: int
    dropout: float
    train: bool
    dtype: Any
    implementation: str
    qkv_bias: bool = True
    epsilon: float = 1e-6
    exact: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B * length, width] -> x [B * length, width]."""
        init = nn.initializers.truncated_normal(0.02)

        def dense(layer: Any, features: int, name: str, **options: Any) -> Any:
            return layer(features, kernel_init=init, dtype=self.dtype, name=name, **options)

        drop = Dropout(self.dropout, deterministic=not self.train)
        heads = share("heads", self.heads)
        length = own_places(self.length)
        images = x.shape[0] // length
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="attention_norm")(x)
        qkv = dense(Columns, 3 * self.width, "qkv", use_bias=self.qkv_bias)(h)
        qkv = qkv.reshape(images, length, -1)
        h = self_attention(qkv, heads=heads, implementation=self.implementation)
        x = x + drop(dense(Rows, self.width, "proj")(h.reshape(x.shape[0], -1)), images)
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="mlp_norm")(x)
        h = dense(Columns, int(self.mlp_ratio * self.width), "expand")(h)
        h = nn.gelu(h, approximate=not self.exact)
        return x + drop(dense(Rows, self.width, "contract")(h), images)


class Bert(nn.Module):
    """module(x, labels[B], noise[B]) -> float32 logits [B, N, outputs].

    x: int32 tokens [B, N] in [0, levels + extra), or numbers [B, N, D] (`bits`). N: the elements of
    `shape`, row by row, channels last. labels: int32 in [0, num_classes]; num_classes is "no
    label"; out of range gives NaN. The label's embedding is a token before the others. noise: t in
    [0, 1], added to all tokens where `timed`; else it is not asked for.

    Tokens in: the output is tied to the embedding table of the `levels`, with a bias, after a dense
    layer and a norm (BERT's head). Numbers in: a linear layer to `outputs`. Positions are learned.
    patch > 1: the transformer runs on patches, patch x patch elements with their channels put side
    by side through a linear layer, and back through one (embeddings then are width / patch^2 wide,
    and nothing is tied): for pixels, at a fraction of the cost. size: "maskgit" or "maskbit" (see
    `SIZES`), of which depth, width and heads are where they are 0 (set, they win). Fields else as
    `jaxgen.nn.dit.DiT`; dropout also falls on the embeddings (rng "dropout" when train=True).
    """

    num_classes: int
    levels: int
    shape: tuple[int, ...]
    size: str = "maskgit"
    depth: int = 0
    width: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    patch: int = 1
    extra: int = 1
    bits: int = 0
    outputs: int = 0
    timed: bool = False
    causal: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    attention: str = "auto"

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, SIZES)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        noise: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Logits float32 [B, N, outputs or levels]."""
        dtype = compute_dtype(self.dtype)
        init = nn.initializers.truncated_normal(0.02)

        def embed(rows: int, name: str, width: int) -> nn.Embed:
            return nn.Embed(rows, width, embedding_init=init, dtype=dtype, name=name)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=init, dtype=dtype, name=name)

        self._check(x.shape[1])
        count, length = x.shape[0], x.shape[1] // self._group
        table = None
        if not self.bits:
            wide = self.width // self.patch**2
            table = embed(self.levels + self.extra, "tokens", wide)
            x = table(x)
        if self.bits or self.patch > 1:
            h = dense(self.width, "in")(self._patches(x.astype(dtype)))
        else:
            h = x
        first = embed(self.num_classes + 1, "labels", self.width)(labels)[:, None]
        places = self.param("positions", init, (length + 1, self.width), jnp.float32)
        h = jnp.concatenate([first, h], axis=1) + places.astype(dtype)
        if self.timed:
            assert noise is not None
            h = h + NoiseEmbedding(self.width, dtype=dtype, name="noise")(noise)[:, None]
        h = nn.LayerNorm(dtype=dtype, name="embedding_norm")(h)
        h = Dropout(self.dropout, deterministic=not train)(h).reshape(-1, self.width)
        blocks = stacked(Block, self.depth, scan=self.scan, remat=self.remat)(
            self.width,
            self.heads,
            self.mlp_ratio,
            length + 1,
            self.dropout,
            train,
            dtype,
            self.attention,
            name="blocks",
        )
        h = blocks(h, places=length + 1)
        h = nn.LayerNorm(dtype=dtype, name="norm")(h).reshape(count, -1, self.width)[:, 1:]
        h = h.reshape(-1, self.width)
        if table is None or self.patch > 1:
            # Zeros: at first every prediction is uniform.
            outputs = self.outputs or self.levels
            zeros = nn.initializers.zeros
            out = nn.Dense(self._group * outputs, kernel_init=zeros, dtype=dtype, name="out")(h)
            out = self._elements(out.reshape(count, length, self._group, outputs))
        else:
            h = nn.LayerNorm(dtype=dtype, name="head_norm")(nn.gelu(dense(self.width, "head")(h)))
            bias = self.param("bias", nn.initializers.zeros, (self.levels,), jnp.float32)
            out = table.attend(h)[:, : self.levels] + bias.astype(dtype)
        return out.reshape(count, length * self._group, -1).astype(jnp.float32)

    @property
    def _channels(self) -> int:
        return self.shape[2] if len(self.shape) == 3 else 1

    @property
    def _group(self) -> int:
        """Elements at a position of the transformer."""
        return 1 if self.patch == 1 else self.patch**2 * self._channels

    def _patches(self, x: jax.Array) -> jax.Array:
        """[B, N, F] -> [B, N / group, group x F]."""
        if self.patch == 1:
            return x
        p, (rows, columns), c = self.patch, self.shape[:2], self._channels
        x = x.reshape(x.shape[0], rows // p, p, columns // p, p, c, -1).transpose(
            0, 1, 3, 2, 4, 5, 6
        )
        return x.reshape(x.shape[0], rows // p * (columns // p), -1)

    def _elements(self, x: jax.Array) -> jax.Array:
        """The inverse, of [B, N / group, group, F]: [B, N, F]."""
        if self.patch == 1:
            return x[:, :, 0]
        p, (rows, columns), c = self.patch, self.shape[:2], self._channels
        x = x.reshape(x.shape[0], rows // p, columns // p, p, p, c, -1).transpose(
            0, 1, 3, 2, 4, 5, 6
        )
        return x.reshape(x.shape[0], rows * columns * c, -1)

    def _check(self, length: int) -> None:
        if self.width % self.heads:
            raise invalid("model.width", self.width, f"multiples of heads={self.heads}")
        if self.causal:
            raise invalid("model.causal", True, "False: every row sees everything")
        if len(self.shape) not in (2, 3) or length != math.prod(self.shape):
            raise invalid("model.shape", self.shape, "(rows, columns) or (height, width, channels)")
        if self.patch < 1 or any(n % self.patch for n in self.shape[:2]):
            raise invalid("model.patch", self.patch, f"a divisor of both of {self.shape[:2]}")
        if self.width % self.patch**2:
            raise invalid("model.width", self.width, f"a multiple of patch^2 = {self.patch**2}")
