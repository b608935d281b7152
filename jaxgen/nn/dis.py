"""DiS: a denoiser of state spaces, which read the tokens of time, label and patches both ways.

Fei et al., "Scalable Diffusion Models with State Space Backbone" (2024), section 3. The layer is
Mamba's (Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
algorithm 2), once in each direction between shared projections (Zhu et al., "Vision Mamba", 2024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import size
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.long_skips import LongSkips
from jaxgen.nn.parallel import Columns, Dropout, Rows, share, whole_examples_only
from jaxgen.nn.stack import Taps

# The paper's table 1 (from memory): 28.4, 119.1, 229.4, 404.0 and 900.6 million parameters. Here,
# without labels, 28.5, 119.2, 229.5, 404.2 and 900.8. S has the width of the authors' code.
SIZES: dict[str, dict[str, int]] = {
    "S": dict(depth=25, width=368),
    "B": dict(depth=25, width=768),
    "M": dict(depth=49, width=768),
    "L": dict(depth=49, width=1024),
    "H": dict(depth=49, width=1536),
}


def selective_scan(
    x: jax.Array, step: jax.Array, decay: jax.Array, enter: jax.Array, leave: jax.Array
) -> jax.Array:
    """y_k = C_k h_k of h_k = exp(step_k A) h_(k-1) + step_k B_k x_k, h_0 = 0, for each channel.

    x, step [B, n, E]; decay A [N, E], negative; enter B, leave C [B, n, N] -> float32 [B, n, E].
    All states at once, by an associative scan over tokens: 2 ln n steps, and N times x in memory.
    """
    kept = jnp.exp(step[:, :, None] * decay)
    added = (step * x)[:, :, None] * enter[..., None]

    def both(first: Any, second: Any) -> Any:
        (a, b), (c, d) = first, second
        return a * c, b * c + d

    states = jax.lax.associative_scan(both, (kept, added), axis=1)[1]
    return jnp.einsum("bnse,bns->bne", states, leave)


class Direction(nn.Module):
    """A causal convolution and a selective state space along tokens, or against them."""

    states: int
    rank: int
    kernel: int
    dtype: Any
    backward: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, E], this device's channels -> the same."""
        x = x[:, ::-1] if self.backward else x
        n, channels = x.shape[1:]
        own = functools.partial(self.param, shape=(channels,), dtype=jnp.float32)
        init, shape = nn.initializers.lecun_normal(in_axis=0), (self.kernel, channels)
        taps = self.param("filter", init, shape, jnp.float32).astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (self.kernel - 1, 0), (0, 0)))
        h = sum(padded[:, k : k + n] * taps[k] for k in range(self.kernel))
        h = nn.silu(h + own("bias", nn.initializers.zeros).astype(self.dtype))
        narrow = Rows(self.rank + 2 * self.states, use_bias=False, dtype=self.dtype, name="narrow")
        low, enter, leave = jnp.split(
            narrow(h).astype(jnp.float32), [self.rank, self.rank + self.states], axis=-1
        )
        total = channels * size("tensor")
        wide = Columns(total, use_bias=False, dtype=self.dtype, name="widen")(low)
        step = nn.softplus(wide.astype(jnp.float32) + own("step", first_step))
        decay = -jnp.exp(self.param("log_decay", first_decay, (self.states, channels)))
        h = h.astype(jnp.float32)
        out = selective_scan(h, step, decay, enter, leave)
        out = out + own("direct", nn.initializers.ones) * h
        return (out[:, ::-1] if self.backward else out).astype(self.dtype)


def first_step(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """What softplus makes steps of that are log-uniform in [.001, .1] (Mamba, section 3.6)."""
    low, high = jnp.log(0.001), jnp.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))


def first_decay(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """ln of 1 to N, the same for all channels (S4D-Real; Gu et al. 2022)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))[:, None], shape)


class Block(nn.Module):
    """Both directions between shared projections, added; merges a skip first where there is one."""

    width: int
    length: int
    states: int
    kernel: int
    dropout: float
    train: bool
    dtype: Any
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None = None) -> jax.Array:
        """x [B * length, width], skip [B, length, width] -> x [B * length, width]."""
        whole_examples_only("with state spaces")
        if skip is not None:
            both = jnp.concatenate([x, skip.reshape(x.shape)], axis=-1)
            x = nn.Dense(self.width, dtype=self.dtype, name="skip")(both)
        inner, images = 2 * self.width, x.shape[0] // self.length
        h = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)
        value, gate = (
            Columns(inner, use_bias=False, dtype=self.dtype, name=name)(h)
            for name in ("value", "gate")
        )
        value = value.reshape(images, self.length, share("channels", inner))
        rank = -(-self.width // 16)
        out: Any = sum(
            Direction(self.states, rank, self.kernel, self.dtype, name == "backward", name=name)(
                value
            )
            for name in ("forward", "backward")
        )
        h = out.reshape(gate.shape) * nn.silu(gate)
        h = Rows(self.width, use_bias=False, dtype=self.dtype, name="proj")(h)
        return x + Dropout(self.dropout, deterministic=not self.train)(h, images)


class DiS(LongSkips):
    """DiS: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    As `nn.long_skips.LongSkips`, with a state space of `states` numbers a channel, 2 x width
    channels, behind a convolution of `kernel` tokens, in each block, and an MLP for the time's
    token. size: "S/2" to "H/8". Norms are LayerNorms; the authors' are RMS norms, and their last is
    modulated.
    """

    table: ClassVar[Mapping[str, Mapping[str, int]]] = SIZES
    conv: bool = False
    states: int = 16
    kernel: int = 4

    def _block(self, length: int, train: bool) -> Callable[..., nn.Module]:
        return functools.partial(
            Block, self.width, length, self.states, self.kernel, self.dropout, train,
            compute_dtype(self.dtype), self.epsilon,
        )  # fmt: skip

    def _time(self, numbers: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=compute_dtype(self.dtype))
        h = dense(4 * self.width, name="time_hidden")(super()._time(numbers))
        return dense(self.width, name="time_out")(nn.silu(h))

    def _check(self, taps: Taps) -> None:
        super()._check(taps)
        for name in ("states", "kernel"):
            if getattr(self, name) < 1:
                raise invalid(f"model.{name}", getattr(self, name), f"{name} >= 1")
