"""What happens to queries and keys before they meet: root mean square norm, rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """x [..., D] over its root mean square along the last axis, times scale [D]; in float32.

    Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), eq. 4.
    """
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    square = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * (jax.lax.rsqrt(square + epsilon) * scale)).astype(x.dtype)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn the pairs (x[..., i], x[..., i + D / 2]) of x [..., N, D] by angles [N, D / 2].

    Su et al., "RoFormer" (2021), eq. 34, with the pairs half a head apart.
    """
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
