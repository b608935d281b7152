"""Parts of a network that know into how many pieces they are cut: dense layers, attention, dropout,
convolutions of tokens on their grid.

Tensor parallelism: Shoeybi et al., "Megatron-LM" (2019), section 3: the first of two dense layers
is cut by columns, the second by rows, and one sum over devices follows. Sequence parallelism: each
device has some of the tokens, and the keys and values of the others come to it, all at once or
around a ring (Liu et al., "Ring Attention", 2023). Outside of a mesh all of them are the plain
layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.mesh import BATCH, exchange, places, position, size
from jaxgen.nn.convolution import depthwise
from jaxgen.ops import Mask, attention, attention_with_lse, fused_attention, merge
from jaxgen.ops.partial import EMPTY
from jaxgen.ops.rotary import rms_norm, rotate


def share(what: str, number: int) -> int:
    """This device's share of `number` columns (or heads). UsageError where they do not divide."""
    devices = size("tensor")
    if number % devices:
        raise invalid("config.mesh.tensor", devices, f"divisors of {what}={number}")
    return number // devices


def own_places(total: int) -> int:
    """How many of an example's `total` places this device holds, the padded ones included."""
    return -(-total // size("sequence")) if places() is not None else total


def on_grid(v: jax.Array, grid: tuple[int, int], fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """fn(images [B, rows, columns, C]) -> [B, rows, columns, D] of tokens on a grid.

    v [B, n, C], this device's tokens, padded ones too -> [B, n, D]; the others' come to it.
    """
    n, total = v.shape[1], places()
    if total is not None:
        v = jax.lax.all_gather(v, "sequence", axis=1, tiled=True)[:, :total]
    out = fn(v.reshape(len(v), *grid, v.shape[-1]))
    out = out.reshape(len(v), -1, out.shape[-1])
    if total is not None:
        out = jnp.pad(out, ((0, 0), (0, n * size("sequence") - total), (0, 0)))
        out = jax.lax.dynamic_slice_in_dim(out, position("sequence") * n, n, 1)
    return out


def whole_examples_only(what: str) -> None:
    """Raises UsageError, saying what needs it, where an example's tokens are cut."""
    if places() is not None:
        raise invalid("config.mesh.sequence", size("sequence"), f"1 {what}")


def biased_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | np.ndarray
) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v of [B, heads, N, D] by the plain formula.

    bias: [N, N] or [heads, N, N], -inf where a query does not look.
    """
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    return nn.softmax(scores * q.shape[-1] ** -0.5 + bias).astype(v.dtype) @ v


class Depthwise(nn.Module):
    """A depthwise convolution of tokens [B, n, C] on their grid."""

    size: int
    grid: tuple[int, int]
    lowering: str

    @nn.compact
    def __call__(self, v: jax.Array) -> jax.Array:
        """v [B, n, C], this device's tokens and channels -> the same."""
        channels = v.shape[-1]
        init, shape = nn.initializers.lecun_normal(), (self.size, self.size, 1, channels)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(v.dtype)
        convolve = functools.partial(depthwise, kernel=kernel, lowering=self.lowering)
        out = on_grid(v, self.grid, convolve)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return out + bias.astype(out.dtype)


class Columns(nn.Module):
    """A dense layer whose outputs are cut along `tensor`: this device's columns of it.

    x [..., D] -> [..., features / tensor]. What it feeds must treat each output alone, or groups of
    neighbouring outputs (heads), until a `Rows`.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., this device's features]."""
        local = share("features", self.features)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], local), jnp.float32)
        out = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (local,), jnp.float32)
            out = out + bias.astype(self.dtype)
        return out


class Rows(nn.Module):
    """A dense layer on inputs cut along `tensor`: products of this device's rows, summed over
    devices.

    x [..., D / tensor] -> [..., features], whole.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., this device's inputs] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        out = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if size("tensor") > 1:
            out = jax.lax.psum(out, "tensor")
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            out = out + bias.astype(self.dtype)
        return out


class Dropout(nn.Module):
    """Dropout whose mask at a place of an example is a function of the key and of these two alone.

    So it is the same on any number of devices. rng "dropout"; nothing where rate is 0 or
    `deterministic`.
    """

    rate: float
    deterministic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, examples: int | None = None) -> jax.Array:
        """x [B, ..., F]; or [B * N, F] with `examples` = B. What stays is divided by 1 - rate."""
        if self.rate == 0 or self.deterministic:
            return x
        examples = x.shape[0] if examples is None else examples
        rows = x.reshape(examples, -1, x.shape[-1])
        count = rows.shape[1]
        first = position("sequence") * count if places() is not None else 0
        key, fold = self.make_rng("dropout"), jax.random.fold_in
        example_keys = jax.vmap(lambda i: fold(key, i))(
            position(*BATCH) * examples + jnp.arange(examples)
        )
        each = jax.vmap(lambda k: jax.vmap(lambda n: fold(k, n))(first + jnp.arange(count)))(
            example_keys
        )
        draw = jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, rows.shape[2:])))
        kept = jnp.where(draw(each), rows / (1 - self.rate), 0)
        return kept.astype(x.dtype).reshape(x.shape)


class HeadNorm(nn.Module):
    """The learned scale [D] by which normalised queries or keys are multiplied."""

    @nn.compact
    def __call__(self, size: int) -> jax.Array:
        """The scale, float32 [size]."""
        return self.param("scale", nn.initializers.ones, (size,), jnp.float32)


def self_attention(
    qkv: jax.Array,
    *,
    heads: int,
    mask: Mask | None = None,
    q_scale: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    angles: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of this device's tokens, by this device's heads, to all tokens of their examples.

    qkv [B, n, heads * 3 * D] (a head's query, key and value side by side) -> [B, n, heads * D], n
    the tokens that this device holds; mask: a structure of all of them; angles [n, D / 2]. Scores
    are divided by the root of D. The rest as `ops.fused_attention`.
    """
    (b, n, wide), total = qkv.shape, places()
    size_ = wide // (3 * heads)
    scale = size_**-0.5
    if total is None:
        return fused_attention(
            qkv,
            heads=heads,
            scale=scale,
            mask=mask,
            q_scale=q_scale,
            k_scale=k_scale,
            angles=angles,
            implementation=implementation,
        )
    q, k, v = split(qkv, heads, q_scale, k_scale, angles)
    if exchange() == "ring":
        out = ring(q, k, v, scale=scale, mask=mask, total=total)
    else:
        k, v = (jax.lax.all_gather(a, "sequence", axis=2, tiled=True) for a in (k, v))
        row = position("sequence") * n
        out = attention(
            q, k, v, scale=scale, mask=mask, row=row, keys=total, implementation=implementation
        )
    return out.transpose(0, 2, 1, 3).reshape(b, n, -1)


def received(q: jax.Array, k: jax.Array) -> jax.Array:
    """How much attention each token gets from all of its example's: [B, N] float32, of mean 1.

    The map of queries and keys [B, heads, N, D], its mean over heads (of all devices), summed over
    queries. Raises UsageError where tokens are cut along `sequence`.
    """
    whole_examples_only("to read attention maps")
    scores = q.astype(jnp.float32) @ k.astype(jnp.float32).mT * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).sum(-2).mean(1)
    return jax.lax.pmean(weights, "tensor") if size("tensor") > 1 else weights


def values(qkv: jax.Array, heads: int) -> jax.Array:
    """`self_attention` with the identity for its map: each token's own value, [B, n, heads * D]."""
    b, n, wide = qkv.shape
    return qkv.reshape(b, n, heads, 3, -1)[:, :, :, 2].reshape(b, n, wide // 3)


def split(
    qkv: jax.Array,
    heads: int,
    q_scale: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    angles: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, heads, n, D], normalised and turned where that is asked for."""
    b, n, wide = qkv.shape
    q, k, v = qkv.reshape(b, n, heads, 3, wide // (3 * heads)).transpose(3, 0, 2, 1, 4)
    if q_scale is not None and k_scale is not None:
        q, k = rms_norm(q, q_scale), rms_norm(k, k_scale)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return q, k, v


def ring(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, mask: Mask | None, total: int
) -> jax.Array:
    """Attention with keys and values passed around the devices of `sequence`, one part at a time.

    The parts are put together by their log-sum-exp (Liu et al. 2023, algorithm 1). q, k, v
    [B, H, n, D] of this device's tokens, of `total` in all -> [B, H, n, D].
    """
    devices, index, n = size("sequence"), position("sequence"), q.shape[2]
    following = [(i, (i + 1) % devices) for i in range(devices)]

    def meet(state: Any, number: jax.Array) -> tuple[Any, None]:
        k, v, merged = state
        column = (index - number) % devices * n
        block = attention_with_lse(
            q, k, v, scale=scale, mask=mask, row=index * n, column=column, keys=total - column
        )
        k, v = (jax.lax.ppermute(a, "sequence", following) for a in (k, v))
        return (k, v, merge(merged, block)), None

    nothing = (jnp.zeros_like(v), jnp.full(q.shape[:3], EMPTY))
    (_, _, (out, _)), _ = jax.lax.scan(meet, (k, v, nothing), jnp.arange(devices))
    return out
