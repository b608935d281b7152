"""Layers of adversarial networks: spectral norm, batch norm by class, attention.

Two collections of variables that are not trained go with the parameters: "spectral", the vectors of
the power iterations, and "batch_stats", a mean and a variance for each batch norm. Both change only
where they are mutable in `apply`; who calls decides what becomes of the new values.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LECUN, ORTHOGONAL = nn.initializers.lecun_normal(), nn.initializers.orthogonal()


def spectral_norm(kernel: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kernel over its largest singular value, next u) by one power iteration from u.

    kernel [..., features] is taken as the matrix [fan_in, features], u is [features]. The gradient
    passes through the singular value with both its vectors held (Miyato et al. 2018, eq. 12).
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = _unit(fixed @ u)
    u = _unit(v @ fixed)
    return kernel / jnp.maximum(v @ matrix @ u, 1e-12), u


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x) + 1e-12)


class _Normalised(nn.Module):
    """What the three layers share: a float32 kernel, divided by its spectral norm where asked."""

    def kernel_of(self, shape: tuple[int, ...], spectral: bool, name: str = "kernel") -> jax.Array:
        kernel = self.param(name, self.initial, shape)
        if not spectral:
            return kernel

        def start() -> jax.Array:
            return _unit(jax.random.normal(self.make_rng("params"), shape[-1:]))

        u = self.variable("spectral", "u", start)
        kernel, following = spectral_norm(kernel, u.value)
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            u.value = following
        return kernel


class Dense(_Normalised):
    """A dense layer; spectral: its matrix has spectral norm 1. initial: of the kernel."""

    features: int
    spectral: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32
    initial: Any = LECUN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., C] -> [..., features]."""
        kernel = self.kernel_of((x.shape[-1], self.features), self.spectral)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            x = x + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return x


class Conv(_Normalised):
    """A convolution with zero padding; spectral and initial as in `Dense`. stride: of the steps."""

    features: int
    size: int = 3
    spectral: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32
    initial: Any = LECUN
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H', W', features], H' = H / stride."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.kernel_of(shape, self.spectral)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            zeros = nn.initializers.zeros
            x = x + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return x


class Embed(_Normalised):
    """A table of vectors, a row a class; spectral: the table's spectral norm is 1."""

    entries: int
    features: int
    spectral: bool = False
    initial: Any = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """labels [B] in [0, entries) -> float32 [B, features]; out of range gives NaN."""
        table = self.kernel_of((self.entries, self.features), self.spectral, "embedding")
        return jnp.take(table, labels, axis=0, mode="fill", fill_value=jnp.nan)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, float32; its gain and bias are linear in a condition.

    train: the moments are those of the whole batch, on however many devices it lies, and go to the
    collection "batch_stats" where that is mutable. Otherwise they come from there. Without a
    condition gain and bias are parameters (Dumoulin et al. 2017; Brock et al. 2019, appendix B).
    """

    spectral: bool = False
    epsilon: float = 1e-5
    initial: Any = LECUN

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None, *, train: bool) -> jax.Array:
        """x [B, ..., C], condition [B, D] or None -> float32 of x's shape."""
        width = x.shape[-1]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(width))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(width))
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            centre = x.mean(axes)
            spread = jnp.square(x - centre).mean(axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                mean.value, var.value = centre, spread
        else:
            centre, spread = mean.value, var.value
        x = (x - centre) * jax.lax.rsqrt(spread + self.epsilon)
        if condition is None:
            gain = self.param("scale", nn.initializers.ones, (width,))
            return x * gain + self.param("bias", nn.initializers.zeros, (width,))
        shape = (x.shape[0], *(1,) * (x.ndim - 2), width)
        options: dict[str, Any] = dict(use_bias=False, initial=self.initial)
        gain = Dense(width, self.spectral, name="gain", **options)(condition)
        bias = Dense(width, self.spectral, name="bias", **options)(condition)
        return x * (1 + gain.reshape(shape)) + bias.reshape(shape)


class SelfAttention(nn.Module):
    """SAGAN's attention (Zhang et al. 2019) with keys and values at half the resolution.

    Queries and keys have C / 8 channels, values C / 2; the result enters times a gain that starts
    at 0. No bias anywhere.
    """

    spectral: bool = True
    dtype: Any = jnp.float32
    initial: Any = LECUN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        options: dict[str, Any] = dict(use_bias=False, dtype=self.dtype, initial=self.initial)
        batch, height, width, channels = x.shape

        def project(features: int, name: str, pool: bool) -> jax.Array:
            h = Conv(features, 1, self.spectral, name=name, **options)(x)
            h = nn.max_pool(h, (2, 2), (2, 2)) if pool else h
            return h.reshape(batch, 1, -1, features)

        q = project(channels // 8, "query", False)
        k = project(channels // 8, "key", True)
        v = project(channels // 2, "value", True)
        # The logits are not scaled (`ops.attention` also wants values as wide as keys).
        h = nn.softmax((q @ k.swapaxes(-1, -2)).astype(jnp.float32)).astype(self.dtype) @ v
        h = h.reshape(batch, height, width, channels // 2)
        out = Conv(channels, 1, self.spectral, name="out", **options)(h)
        return x + self.param("gain", nn.initializers.zeros, ()) * out


class MinibatchDiscrimination(nn.Module):
    """How near each example lies to the batch's others (Salimans et al. 2016, section 3.2).

    Beside the features: for each kernel the sum over the batch of exp(-|M_i - M_j|_1), M [kernels,
    width] linear in the features.
    """

    kernels: int = 50
    width: int = 5

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h [B, F] -> [B, F + kernels]."""
        made = Dense(self.kernels * self.width, use_bias=False, name="tensor")(h)
        made = made.reshape(-1, self.kernels, self.width)
        apart = jnp.abs(made[:, None] - made[None]).sum(-1)
        return jnp.concatenate([h, jnp.exp(-apart).sum(1)], -1)


class MinibatchDeviation(nn.Module):
    """How much the batch varies: the features' standard deviations, averaged (Karras et al. 2018).

    One feature more, the same for the whole batch.
    """

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h [B, F] -> [B, F + 1]."""
        spread = jnp.sqrt(jnp.square(h - h.mean(0)).mean(0) + 1e-8).mean()
        return jnp.concatenate([h, jnp.broadcast_to(spread, (len(h), 1))], -1)
