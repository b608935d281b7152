"""Magnitude-preserving layers: what goes in with unit variance comes out with unit variance.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024, "EDM2"),
app. B; equation numbers below are theirs.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def unit_rms(x: jax.Array, axes: int | tuple[int, ...], *, epsilon: float = 1e-4) -> jax.Array:
    """x over its root mean square along `axes`, in float32; x's dtype out (eq. 30)."""
    wide = x.astype(jnp.float32)
    # The tiny number keeps the square root's gradient finite at zero.
    rms = jnp.sqrt(jnp.square(wide).mean(axes, keepdims=True) + 1e-20)
    return (wide / (rms + epsilon)).astype(x.dtype)


def mp_silu(x: jax.Array) -> jax.Array:
    """silu(x) over 0.596, its root mean square on a standard normal (eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): a weighted sum of unit variance (eq. 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Concatenate channels so that b has weight t in the result, whatever its width (eq. 103).

    The mean square over all channels of the result is one when those of a and b are.
    """
    n, m = a.shape[-1], b.shape[-1]
    scale = math.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    scaled = [a * (scale * (1 - t) / math.sqrt(n)), b * (scale * t / math.sqrt(m))]
    return jnp.concatenate(scaled, axis=-1)


def mp_fourier(values: jax.Array, dim: int) -> jax.Array:
    """sqrt 2 cos(2 pi (f value + phase)) of numbers: [B] -> float32 [B, dim] (eq. 75).

    Frequencies standard normal, phases uniform: constants of the network, drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    frequencies = jnp.asarray(2 * np.pi * rng.standard_normal(dim), jnp.float32)
    phases = jnp.asarray(2 * np.pi * rng.random(dim), jnp.float32)
    return math.sqrt(2) * jnp.cos(values.astype(jnp.float32)[:, None] * frequencies + phases)


class MPFourier(nn.Module):
    """`mp_fourier` with frequencies and phases that are drawn once and part of the checkpoint.

    In radians; not trained. To be called `jaxgen.method.CONSTANTS`.
    """

    dim: int

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """values [B] -> float32 [B, dim]."""

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return 2 * jnp.pi * jax.random.uniform(key, shape, dtype)

        normal = nn.initializers.normal(2 * math.pi)
        frequencies = self.param("frequencies", normal, (self.dim,), jnp.float32)
        phases = self.param("phases", uniform, (self.dim,), jnp.float32)
        frequencies, phases = jax.lax.stop_gradient((frequencies, phases))
        angles = values.astype(jnp.float32)[:, None] * frequencies + phases
        return math.sqrt(2) * jnp.cos(angles)


def _fan_in_axes(weight: jax.Array) -> tuple[int, ...]:
    return tuple(range(weight.ndim - 1))


def normalise_weights(params: PyTree) -> PyTree:
    """Forced weight normalisation: every output's weights at unit root mean square (alg. 1).

    Apply it after each optimizer step. A weight (an array of two or more axes, output last) is
    divided so that the fan_in numbers of each output have mean square one, that is norm
    sqrt(fan_in), which is the scale the paper's learning rates are for. Gains are left alone.
    """
    return jax.tree.map(
        lambda w: unit_rms(w, _fan_in_axes(w), epsilon=0.0) if w.ndim > 1 else w, params
    )


def _normalised_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return normalise_weights(jax.random.normal(key, shape, dtype))


class MPDense(nn.Module):
    """Dense layer or (with `size`) SAME convolution, no bias, on normalised weights (eq. 47, 66).

    The weight is normalised inside the forward pass too, so that its gradient is orthogonal to it,
    and the result has the variance of the input for uncorrelated features.
    """

    features: int
    size: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        """x [..., C] (images [B, H, W, C] with `size`) -> [..., features], times `gain`."""
        window = () if self.size is None else (self.size, self.size)
        shape = (*window, x.shape[-1], self.features)
        weight = self.param("kernel", _normalised_normal, shape, jnp.float32)
        scale = gain / math.sqrt(math.prod(shape[:-1]))
        weight = (unit_rms(weight, _fan_in_axes(weight)) * scale).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.size is None:
            return x @ weight
        return jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
