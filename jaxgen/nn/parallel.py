"""Parts of a network that know into how many pieces they are cut: dense layers, attention, dropout.

Tensor parallelism: Shoeybi et al., "Megatron-LM" (2019), section 3: the first of two dense layers
is cut by columns, the second by rows, and one sum over devices follows. Sequence parallelism: each
device has some of the tokens, and the keys and values of the others come to it, all at once or
around a ring (Liu et al., "Ring Attention", 2023). Outside of a mesh all of them are the plain
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import ops
from jaxgen.errors import invalid
from jaxgen.mesh import BATCH, exchange, places, position, size
from jaxgen.ops.masks import Full, Mask, Place, dense

EVERYTHING = Full()


def share(what: str, number: int) -> int:
    """This device's share of `number` columns (or heads). UsageError where they do not divide."""
    parts = size("tensor")
    if number % parts:
        raise invalid("config.mesh.tensor", parts, f"divisors of {what}={number}")
    return number // parts


def own_places(total: int) -> int:
    """How many of an example's `total` places this device holds, the padded ones included."""
    return -(-total // size("sequence")) if places() is not None else total


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
        own = share("features", self.features)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], own), jnp.float32)
        out = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (own,), jnp.float32)
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
        own = jax.vmap(lambda i: fold(key, i))(position(*BATCH) * examples + jnp.arange(examples))
        each = jax.vmap(lambda k: jax.vmap(lambda n: fold(k, n))(first + jnp.arange(count)))(own)
        draw = jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, rows.shape[2:])))
        kept = jnp.where(draw(each), rows / (1 - self.rate), 0)
        return kept.astype(x.dtype).reshape(x.shape)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask = EVERYTHING,
    implementation: str = "xla",
) -> jax.Array:
    """`ops.attention` of this device's queries to the keys of all places of their examples.

    q, k, v [B, H, n, D], n the places that this device holds; mask: a structure of all of them.
    """
    total = places()
    if total is None:
        allowed = dense(mask, q.shape[2], k.shape[2], Place())
        return ops.attention(q, k, v, scale=scale, mask=allowed, implementation=implementation)
    if exchange() == "ring":
        return ring(q, k, v, scale=scale, mask=mask, total=total)
    k, v = (jax.lax.all_gather(a, "sequence", axis=2, tiled=True) for a in (k, v))
    rows = position("sequence") * q.shape[2] + jnp.arange(q.shape[2])
    columns = jnp.arange(k.shape[2])
    allowed = mask.allowed(rows[:, None], columns) & (columns < total)
    return ops.attention(q, k, v, scale=scale, mask=allowed, implementation="xla")


def ring(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, mask: Mask, total: int
) -> jax.Array:
    """Attention with keys and values passed around the devices of `sequence`, one part at a time.

    The softmax is accumulated over parts by its running maximum and sum, in float32 (Milakov &
    Gimelshein 2018; Liu et al. 2023, algorithm 1). Shapes as `attention`.
    """
    parts, own = size("sequence"), position("sequence")
    wide = jnp.promote_types(jnp.float32, q.dtype)
    n = q.shape[2]
    rows = own * n + jnp.arange(n)
    low = jnp.finfo(wide).min

    def meet(state: Any, number: jax.Array) -> tuple[Any, None]:
        k, v, out, top, below = state
        columns = (own - number) % parts * n + jnp.arange(n)
        seen = mask.allowed(rows[:, None], columns) & (columns < total)
        scores = jnp.matmul(q * jnp.asarray(scale, q.dtype), k.mT, preferred_element_type=wide)
        scores = jnp.where(seen, scores, low)
        higher = jax.lax.stop_gradient(jnp.maximum(top, scores.max(-1)))
        weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
        fade = jnp.exp(top - higher)
        part = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
        out, below = out * fade[..., None] + part, below * fade + weights.sum(-1)
        following = [(i, (i + 1) % parts) for i in range(parts)]
        k, v = (jax.lax.ppermute(a, "sequence", following) for a in (k, v))
        return (k, v, out, higher, below), None

    start = (
        k,
        v,
        jnp.zeros((*q.shape[:3], v.shape[-1]), wide),
        jnp.full(q.shape[:3], low),
        jnp.zeros(q.shape[:3], wide),
    )
    (_, _, out, _, below), _ = jax.lax.scan(meet, start, jnp.arange(parts))
    return (out / jnp.where(below == 0, 1, below)[..., None]).astype(v.dtype)
