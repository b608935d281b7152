"""A plain MLP from a state's features to logits: policies and flows of GFlowNets."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn.layers import compute_dtype


class Policy(nn.Module):
    """module(features [..., F]) -> float32 [..., outputs]: `depth` ReLU layers of `width`.

    outputs: what the method needs, which sets it. All outputs are exactly 0 at initialisation, so
    that the first policy is uniform. dtype: compute; parameters are float32.
    """

    outputs: int = 1
    width: int = 256
    depth: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits of features [..., F]."""
        dtype = compute_dtype(self.dtype)
        h = features.astype(dtype)
        for layer in range(self.depth):
            h = nn.relu(nn.Dense(self.width, dtype=dtype, name=f"hidden_{layer}")(h))
        zeros = nn.initializers.zeros
        out = nn.Dense(self.outputs, kernel_init=zeros, dtype=dtype, name="out")(h)
        return out.astype(jnp.float32)
