"""DiT: a transformer on patches, conditioned through adaptive LayerNorm that starts as identity.

Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023). Variants by field: QK-norm
(Dehghani et al. 2023), 2-D rotary positions (Su et al. 2021, axial), SwiGLU (Shazeer 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.layers import NoiseEmbedding, compute_dtype, fill, modulate, normalise, patched
from jaxgen.nn.parallel import (
    Columns,
    Dropout,
    HeadNorm,
    Rows,
    received,
    self_attention,
    share,
    split,
    values,
)
from jaxgen.nn.positions import rope_2d, sin_cos_2d
from jaxgen.nn.stack import Stack, Taps, stacked

# The paper's table 1. With 32x32x4 latents, patch 2, learned sigma and 1000 classes: 33, 130, 458
# and 675 million parameters; 6.06, 23.01, 80.71 and 118.64 G multiply-adds (the paper's "Gflops").
Sizes = Mapping[str, Mapping[str, Any]]
SIZES: Sizes = {
    "S": dict(depth=12, width=384, heads=6),
    "B": dict(depth=12, width=768, heads=12),
    "L": dict(depth=24, width=1024, heads=16),
    "XL": dict(depth=28, width=1152, heads=16),
}


class Block(nn.Module):
    """One adaLN-Zero block on tokens kept as a matrix [B * N, width].

    Tokens stay flat because XLA on CPU runs the dense layers of [B, N, width] slower. The columns
    of `qkv` go head by head (a head's query, key, value), so that heads can be cut over devices.
    """

    width: int
    heads: int
    mlp_ratio: float
    qk_norm: bool
    rope: bool
    swiglu: bool
    dropout: float
    train: bool
    dtype: Any
    implementation: str
    mlp_epsilon: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None = None,
    ) -> jax.Array:
        """x [B * N, width], condition [B, width], angles [N, head_dim / 2] -> x [B * N, width].

        alone: bool [], whether the attention map is the identity. Sows "received"
        (`nn.parallel.received`).
        """
        images = condition.shape[0]
        affine = nn.Dense(
            6 * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation"
        )(condition)
        modulation = jnp.split(affine[:, None, :], 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation

        def tokens(h: jax.Array) -> jax.Array:
            return h.reshape(images, -1, self.width)

        def flat(h: jax.Array) -> jax.Array:
            return h.reshape(-1, self.width)

        drop = Dropout(self.dropout, deterministic=not self.train)
        h = modulate(tokens(normalise(x).astype(self.dtype)), shift_a, scale_a)
        h = drop(self._attention(flat(h), condition, angles, alone), images)
        x = x + flat(gate_a * tokens(h))
        h = normalise(x, epsilon=self.mlp_epsilon).astype(self.dtype)
        h = modulate(tokens(h), shift_m, scale_m)
        h = drop(self._mlp(flat(h), images), images)
        return x + flat(gate_m * tokens(h))

    def _columns(self, features: int, name: str) -> Columns:
        init = nn.initializers.xavier_uniform()
        return Columns(features, kernel_init=init, dtype=self.dtype, name=name)

    def _rows(self, name: str) -> Rows:
        init = nn.initializers.xavier_uniform()
        return Rows(self.width, kernel_init=init, dtype=self.dtype, name=name)

    def _attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        qkv, options = self._qkv(x, condition.shape[0], angles)
        if self.is_mutable_collection("intermediates"):
            q, k, _ = split(qkv, **options)
            self.sow("intermediates", "received", received(q, k))
        h = self_attention(qkv, **options, implementation=self.implementation)
        if alone is not None:
            h = jnp.where(alone, values(qkv, options["heads"]), h)
        return self._project(h.reshape(-1, h.shape[-1]), condition)

    def _qkv(
        self, x: jax.Array, images: int, angles: jax.Array | None, name: str = "qkv"
    ) -> tuple[jax.Array, dict[str, Any]]:
        """([B, n, this device's heads x 3 x size], how `split` makes queries, keys and values)."""
        heads, size = share("heads", self.heads), self.width // self.heads
        qkv = self._columns(3 * self.width, name)(x).reshape(images, -1, heads * 3 * size)
        norms = [HeadNorm(name=n)(size) for n in ("q_norm", "k_norm")] if self.qk_norm else []
        q_scale, k_scale = norms or (None, None)
        return qkv, dict(heads=heads, q_scale=q_scale, k_scale=k_scale, angles=angles)

    def _project(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        """What heads say [B * N, this device's] -> [B * N, width]."""
        return self._rows("proj")(h)

    def _mlp(self, x: jax.Array, images: int) -> jax.Array:
        hidden = int(self.mlp_ratio * self.width)
        if self.swiglu:
            # Two thirds of the width keeps the parameters of the plain MLP (Shazeer 2020, sec. 2).
            value, gate = (self._columns(2 * hidden // 3, n)(x) for n in ("value", "gate"))
            h = nn.silu(gate) * value
        else:
            h = nn.gelu(self._columns(hidden, "expand")(x), approximate=True)
        return self._rows("contract")(h)


class DiT(nn.Module):
    """DiT: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    noise: t in [0, 1], times `time_scale` before the sinusoidal embedding; the paper's networks are
    told the index of a noise level, 0 to 999 (`path.discrete`, time_scale=1). condition: labels
    int32 [B] in [0, num_classes]; row num_classes of the table is "no label"; out of range gives
    NaN; or several conditions (`jaxgen.nn.conditions`). H and W must be multiples of `patch`, else
    UsageError. Learned sigma is out_channels = 2 C. At initialisation every block is the identity
    and the output exactly zero.

    Fields: size ("S/2" to "XL/8", see `SIZES`), of which depth, width, heads and patch are where
    they are 0 (set, they win); mlp_ratio; qk_norm (RMS-normalised queries and
    keys), rope (2-D rotary positions, besides the fixed sin-cos table), swiglu (gated MLP of the
    same size); dropout on both branches of each block (rng "dropout" when train=True); dtype
    (compute; parameters, norms and softmax are float32); scan (one compiled block for all layers);
    remat ("none", "full", "dots"; by default "dots": a scan that keeps only the products of weights
    is faster, on CPU too, than one that keeps everything, since it writes less memory); attention
    (an implementation of `jaxgen.ops.attention`); identity_attention (layers, from 0, whose
    attention map is the identity, for guidance away from them); conditions (what it can be told
    besides the label, see `jaxgen.nn.conditions`); endpoint (the lowest of the noise's frequencies
    is 1 / 10000, as in diffusers' DiT) and mlp_epsilon (of the norm before the MLP; 1e-5 there).

    Called with taps=(k, ...) it returns (output, {k: the tokens [B, N, width] after k blocks}), N
    the patches row by row, k from 1 to depth. Raises UsageError for other taps.
    """

    table: ClassVar[Sizes] = SIZES
    sown: ClassVar[str] = ""
    num_classes: int
    out_channels: int
    size: str = "S/2"
    depth: int = 0
    width: int = 0
    heads: int = 0
    patch: int = 0
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    rope: bool = False
    swiglu: bool = False
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    attention: str = "auto"
    identity_attention: tuple[int, ...] = ()
    conditions: Conditions = ()
    endpoint: bool = False
    mlp_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, patched(self.table))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Any,
        *,
        train: bool = False,
        taps: Taps = (),
    ) -> Any:
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        dtype = compute_dtype(self.dtype)
        self._check(x.shape)
        images, (rows, columns) = x.shape[0], grid(x.shape, self.patch)

        c = self._condition(noise, condition, dtype)
        h = self._embed(patchify(x.astype(dtype), self.patch), c)
        positions = self._positions(rows, columns).astype(dtype)
        h = (h.reshape(images, rows * columns, self.width) + positions).reshape(-1, self.width)
        angles = rope_2d(rows, columns, self.width // self.heads) if self.rope else None
        h, tapped = self._through(h, c, angles, (rows, columns), taps, train)
        out = self._image(h, c, rows, columns)
        return (out, tapped) if taps else out

    def _embed(self, patches: jax.Array, c: jax.Array) -> jax.Array:
        """Patches [B * N, patch^2 C] -> tokens [B * N, width]."""
        init, dtype = nn.initializers.xavier_uniform(), compute_dtype(self.dtype)
        return nn.Dense(self.width, kernel_init=init, dtype=dtype, name="patch")(patches)

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """What is added to the tokens of a grid, [rows * columns, width]."""
        return sin_cos_2d(rows, columns, self.width)

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        return blocks_of(self, self.depth, self.width, self.heads, train)

    def _through(
        self,
        h: jax.Array,
        c: jax.Array,
        angles: jax.Array | None,
        shape: tuple[int, int],
        taps: Taps,
        train: bool,
    ) -> tuple[jax.Array, dict[Any, jax.Array]]:
        """Tokens [B * N, width] of a grid of this shape through the blocks, and the taps.

        A tap called `sown` is what every block sows of "statistics" under that name, [B, depth,
        ...].
        """
        blocks = self._blocks(train, shape)
        places, alone = shape[0] * shape[1], (self._alone(),)
        numbers = tuple(k for k in taps if k != self.sown)
        h, tapped, *more = blocks(
            h, c, angles, places=places, each=alone, taps=numbers, statistics=self.sown in taps
        )
        seen = {name: a.swapaxes(0, 1) for each in more for name, a in each.items()}
        return h, {**tapped, **seen}

    def _number(self, noise: jax.Array) -> jax.Array:
        """The number that is embedded, before `time_scale`."""
        return noise

    def _condition(self, noise: jax.Array, condition: Any, dtype: Any) -> jax.Array:
        """noise [B], a condition -> the vectors [B, width] that condition all blocks."""
        number = self._number(noise)
        embedding = NoiseEmbedding(
            self.width, self.time_scale, endpoint=self.endpoint, dtype=dtype, name="noise"
        )
        c = embedding(number)
        init = nn.initializers.normal(0.02)
        table = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=init, dtype=dtype, name="labels"
        )
        told = embed(
            condition, table, self.conditions, noise.shape[0], width=self.width, dtype=dtype
        )
        return nn.silu(c + told)

    def _alone(self) -> jax.Array | None:
        """Which layers' attention maps are the identity, bool [depth], or None: none."""
        if not self.identity_attention:
            return None
        layers = jnp.asarray(self.identity_attention)
        return (jnp.arange(self.depth)[:, None] == layers).any(-1)

    def _image(self, h: jax.Array, c: jax.Array, rows: int, columns: int) -> jax.Array:
        """The last layer: tokens [B * N, D], condition [B, D] -> float32 [B, H, W, channels]."""
        images, width = c.shape
        zeros, dtype = nn.initializers.zeros, compute_dtype(self.dtype)
        affine = nn.Dense(2 * width, kernel_init=zeros, dtype=dtype, name="modulation")(c)
        shift, scale = jnp.split(affine[:, None, :], 2, axis=-1)
        h = normalise(h).astype(dtype).reshape(images, -1, width)
        h = modulate(h, shift, scale).reshape(-1, width)
        h = nn.Dense(self.patch**2 * self.out_channels, kernel_init=zeros, dtype=dtype, name="out")(
            h
        )
        return unpatchify(h, images, rows, columns, self.patch).astype(jnp.float32)

    def _check(self, shape: tuple[int, ...]) -> None:
        grid(shape, self.patch)
        if self.width % (4 * self.heads):
            raise invalid("model.width", self.width, f"multiples of 4 x heads = {4 * self.heads}")
        if not set(self.identity_attention) <= set(range(self.depth)):
            allowed = f"layers 0 to {self.depth - 1}"
            raise invalid("model.identity_attention", self.identity_attention, allowed)


class SiT(DiT):
    """SiT (Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models", 2024), as `DiT`.

    DiT told the paper's time 1 - t in [0, 1], which runs from noise to data, as it is. The released
    networks predict the velocity towards the data, minus ours, and have as many outputs again that
    nothing reads: `jaxgen.pretrained.dit.from_official` turns the sign and leaves those out.
    """

    time_scale: float = 1.0

    def _number(self, noise: jax.Array) -> jax.Array:
        return 1 - noise


def blocks_of(
    net: DiT,
    depth: int,
    width: int,
    heads: int,
    train: bool,
    block: Callable[..., nn.Module] = Block,
) -> Stack:
    """A stack called "blocks", of these sizes and else as the fields of `net` say.

    It is part of the module in whose call this is called. block: makes a `Block` of its fields.
    """
    return stacked(
        block,
        depth,
        scan=net.scan,
        remat=net.remat,
        shared=("examples", "places"),
        per_layer=(None,),
    )(
        width,
        heads,
        net.mlp_ratio,
        net.qk_norm,
        net.rope,
        net.swiglu,
        net.dropout,
        train,
        compute_dtype(net.dtype),
        net.attention,
        net.mlp_epsilon,
        name="blocks",
    )


def grid(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of images [B, H, W, C]; UsageError where they do not fit."""
    if len(shape) != 4 or shape[1] % patch or shape[2] % patch:
        raise invalid(
            "image size",
            shape[1:],
            f"(height, width, channels), height and width multiples of patch={patch}",
            "Choose model.patch to divide the image, or resize the images.",
        )
    return shape[1] // patch, shape[2] // patch


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B * N, patch * patch * C]; a patch in (row, column, channel) order."""
    p, (b, h, w, c) = patch, x.shape
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, p * p * c)


def unpatchify(x: jax.Array, images: int, rows: int, columns: int, patch: int) -> jax.Array:
    """The inverse of `patchify`, for images of rows x columns patches."""
    p = patch
    x = x.reshape(images, rows, columns, p, p, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(images, rows * p, columns * p, -1)
