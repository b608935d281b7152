"""PixelCNN++: gated residual blocks of shifted convolutions in a U shape, two streams.

Salimans et al., "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
and Other Modifications" (2017), figure 2; weights are normalised after Salimans & Kingma 2016. The
paper sets the initial gains and biases from a batch of data; here gains start at 1, which keeps the
scale of normalised filters' outputs, and at 0.1 at the end of a block, and biases at 0.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.convolution import convolve
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.parallel import Dropout


def down(x: jax.Array) -> jax.Array:
    """Move rows down by one, zeros above."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]


def right(x: jax.Array) -> jax.Array:
    """Move columns right by one, zeros on the left."""
    return jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]


def concat_elu(x: jax.Array) -> jax.Array:
    """ELU of x and of -x: twice the features."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class Conv(nn.Module):
    """A weight-normalised convolution that sees no row below and, on the right, what `sides` says.

    kernel (rows, columns): rows end at the current one. sides: columns centred on the current one
    (a stream that looks only at earlier rows); else they end at it.
    """

    features: int
    kernel: tuple[int, int]
    sides: bool
    stride: int = 1
    gain: float = 1.0
    dtype: Any = jnp.float32
    lowering: str = "patches"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        rows, columns = self.kernel
        kernel, bias = self._weights((rows, columns, x.shape[-1], self.features))
        edge = ((columns - 1) // 2, (columns - 1) // 2) if self.sides else (columns - 1, 0)
        out = convolve(
            x.astype(self.dtype),
            kernel,
            pad=((rows - 1, 0), edge),
            stride=self.stride,
            lowering=self.lowering,
        )
        return out + bias

    def _weights(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        v = self.param("direction", nn.initializers.normal(0.05), shape)
        g = self.param("gain", nn.initializers.constant(self.gain), shape[-1:])
        b = self.param("bias", nn.initializers.zeros, shape[-1:])
        norm = jnp.sqrt(jnp.square(v).sum((0, 1, 2)) + 1e-12)
        return (g * v / norm).astype(self.dtype), b.astype(self.dtype)


class Upsample(Conv):
    """The transposed convolution of the same kernel at stride 2, cut so that it stays causal."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, 2 H, 2 W, features]."""
        rows, columns = self.kernel
        kernel, bias = self._weights((rows, columns, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        b, h, w, _ = x.shape
        edge = (columns - 1) // 2 if self.sides else 0
        out = jnp.zeros((b, 2 * h, 2 * w, self.features), self.dtype)
        # Output 2 i + r - edge from input i by tap r: at most one tap lands beyond either end.
        for r in range(rows):
            for c in range(columns):
                phase = x @ kernel[r, c]
                offset = c - edge
                if offset < 0:
                    phase, offset = phase[:, :, 1:], offset + 2
                count = min(phase.shape[2], (2 * w - offset + 1) // 2)
                out = out.at[:, r::2, offset : offset + 2 * count : 2].add(phase[:, :, :count])
        return out + bias


class Block(nn.Module):
    """A gated residual block, with a second input `side` from the other stream or a shortcut."""

    features: int
    sides: bool
    dropout: float
    train: bool
    dtype: Any
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, side: jax.Array | None) -> jax.Array:
        """x [B, H, W, features], labels' biases [B, 2 features] -> [B, H, W, features]."""
        kernel = (2, 3) if self.sides else (2, 2)
        both: dict[str, Any] = dict(dtype=self.dtype, lowering=self.lowering)
        h = Conv(self.features, kernel, self.sides, **both, name="first")(concat_elu(x))
        if side is not None:
            h = h + Conv(self.features, (1, 1), False, **both, name="side")(concat_elu(side))
        h = Dropout(self.dropout, deterministic=not self.train)(concat_elu(h))
        h = Conv(2 * self.features, kernel, self.sides, gain=0.1, **both, name="second")(h)
        value, gate = jnp.split(h + labels[:, None, None], 2, axis=-1)
        return x + value * nn.sigmoid(gate)


class PixelCNNpp(nn.Module):
    """PixelCNN++: module(tokens[B, H W C], labels[B]) -> float32 [B, H W, outputs].

    tokens: int32 images of `shape` (H, W, C), flattened row by row, channels last; the network sees
    them as numbers in [-1, 1]. Row i depends on the label and on whole pixels [0, i): `group` is
    C, and a head (`families.autoregressive.heads.logistic_mixture`) makes a pixel's channels depend
    on each other. labels: int32 in [0, num_classes], the last being "no label"; out of range NaN.

    Fields: width (features), blocks (residual blocks of each stream at each resolution),
    resolutions (1 + the number of halvings; sizes are rounded up), dropout (rng "dropout" when
    train=True), dtype (compute; parameters and outputs are float32), lowering ("patches" or
    "direct"). The paper's for CIFAR-10 is `cifar10`. Sampling runs the whole network for each
    pixel; "patches" keeps that from being slow on CPU.
    """

    num_classes: int
    levels: int
    shape: tuple[int, ...]
    outputs: int = 0
    width: int = 64
    blocks: int = 2
    resolutions: int = 2
    dropout: float = 0.5
    dtype: str = "float32"
    lowering: str = "patches"

    @property
    def group(self) -> int:
        """Tokens that a row of the output is about: a pixel's channels."""
        return self.shape[2] if len(self.shape) == 3 else 1

    @nn.compact
    def __call__(self, tokens: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """Outputs float32 [B, H W, outputs] of tokens [B, H W C] under labels [B]."""
        self._check()
        dtype, width = compute_dtype(self.dtype), self.width
        both: dict[str, Any] = dict(dtype=dtype, lowering=self.lowering)
        x = tokens.reshape(-1, self.shape[0], self.shape[1], self.group)
        x = x * (2 / max(self.levels - 1, 1)) - 1.0
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(dtype)

        # Both streams of the way down, then of the way up: 2 blocks each at every resolution.
        sites = 2 * (self.resolutions * (2 * self.blocks + 1) - 1)
        init = nn.initializers.normal(0.05)
        table = nn.Embed(
            self.num_classes + 1, sites * 2 * width, embedding_init=init, dtype=dtype, name="labels"
        )
        biases = list(jnp.moveaxis(table(labels).reshape(-1, sites, 2 * width), 1, 0))

        def block(h: jax.Array, side: jax.Array | None, sides: bool, name: str) -> jax.Array:
            made = Block(width, sides, self.dropout, train, dtype, self.lowering, name=name)
            return made(h, biases.pop(), side)

        # u: the rows above. l: those, and the pixels on the left.
        u = down(Conv(width, (2, 3), True, **both, name="above")(x))
        above = down(Conv(width, (1, 3), True, **both, name="straight_above")(x))
        l = above + right(Conv(width, (2, 1), False, **both, name="left")(x))  # noqa: E741
        kept = [(u, l)]
        for level in range(self.resolutions):
            if level:
                u = Conv(width, (2, 3), True, 2, **both, name=f"u_halve_{level}")(u)
                l = Conv(width, (2, 2), False, 2, **both, name=f"l_halve_{level}")(l)  # noqa: E741
                kept.append((u, l))
            for i in range(self.blocks):
                u = block(u, None, True, f"u_down_{level}_{i}")
                l = block(l, u, False, f"l_down_{level}_{i}")  # noqa: E741
                kept.append((u, l))
        u, l = kept.pop()  # noqa: E741
        for level in reversed(range(self.resolutions)):
            if level < self.resolutions - 1:
                height, columns = kept[-1][0].shape[1:3]
                u = Upsample(width, (2, 3), True, **both, name=f"u_double_{level}")(u)
                l = Upsample(width, (2, 2), False, **both, name=f"l_double_{level}")(l)  # noqa: E741
                u, l = u[:, :height, :columns], l[:, :height, :columns]  # noqa: E741
            # One more block than on the way down: for the input, or for what was halved.
            for i in range(self.blocks + (level < self.resolutions - 1)):
                side_u, side_l = kept.pop()
                u = block(u, side_u, True, f"u_up_{level}_{i}")
                l = block(l, jnp.concatenate([u, side_l], -1), False, f"l_up_{level}_{i}")  # noqa: E741
        assert not kept and not biases
        outputs = self.outputs or self.levels
        out = Conv(outputs, (1, 1), False, **both, name="out")(nn.elu(l))
        return out.reshape(x.shape[0], -1, outputs).astype(jnp.float32)

    def _check(self) -> None:
        if len(self.shape) not in (2, 3):
            raise invalid("model.shape", self.shape, "(rows, columns) or (height, width, channels)")
        for name, value in (("blocks", self.blocks), ("resolutions", self.resolutions)):
            if value < 1:
                raise invalid(f"model.{name}", value, "a number >= 1")


def cifar10(
    *,
    num_classes: int,
    levels: int,
    shape: tuple[int, ...],
    dropout: float = 0.5,
    dtype: str = "float32",
    lowering: str = "direct",
) -> PixelCNNpp:
    """The paper's network for CIFAR-10: 160 features, 5 blocks, 3 resolutions."""
    return PixelCNNpp(
        num_classes,
        levels,
        tuple(shape),
        width=160,
        blocks=5,
        resolutions=3,
        dropout=dropout,
        dtype=dtype,
        lowering=lowering,
    )
