"""Experts: several MLPs of which each token is given to some, exactly and in a fixed order.

Rows are sorted by expert and multiplied group by group (`ops.grouped`), so that nothing is
dropped, an expert costs its own rows, and a token's output depends on that token alone. On a mesh
experts lie along `tensor` (`nn.placement.EXPERTS`): a device computes its own experts' part of all
of its tokens, and one sum over devices follows, as after `nn.parallel.Rows`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.mesh import places, position, size
from jaxgen.nn.parallel import share
from jaxgen.ops.grouped import grouped_matmul


class Grouped(nn.Module):
    """A dense layer of each expert: rows [R, D], sorted by expert -> [R, features]."""

    experts: int
    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, rows: jax.Array, sizes: jax.Array, group: jax.Array) -> jax.Array:
        """sizes: rows of each of this device's experts; group [R]: whose a row is."""
        local, init = (
            share("experts", self.experts),
            nn.initializers.xavier_uniform(batch_axis=(0,)),
        )
        kernel = self.param("kernel", init, (local, rows.shape[-1], self.features), jnp.float32)
        out = grouped_matmul(rows, kernel.astype(self.dtype), sizes)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (local, self.features), jnp.float32)
            out = out + bias.astype(self.dtype)[jnp.minimum(group, local - 1)]
        return out


class Experts(nn.Module):
    """`experts` MLPs of `hidden` units: the sum of those that a token is given to, weighted.

    gated: SwiGLU without biases (Shazeer 2020); else GELU with biases, as a DiT's MLP.
    """

    experts: int
    hidden: int
    gated: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        expert: jax.Array,
        weight: jax.Array,
        taken: jax.Array | None = None,
        most: int | None = None,
    ) -> jax.Array:
        """x [T, D], for each token k experts [T, k] and their weights [T, k] -> [T, D].

        taken: bool [T, k], which of them are meant (all). most: how many of the T k these are at
        most; no other rows are computed.
        """
        (tokens, k), local = expert.shape, share("experts", self.experts)
        own = expert.reshape(-1) - position("tensor") * local
        here = (own >= 0) & (own < local)
        if taken is not None:
            here &= taken.reshape(-1)
        group = jnp.where(here, own, local)
        order = jnp.argsort(group, stable=True)
        slot, order = jnp.argsort(order), order[:most]
        group = group[order]
        sizes = jnp.bincount(group, length=local + 1)[:local].astype(jnp.int32)
        # Every index once, so that gradients are added in no order but this one.
        rows = jnp.repeat(x, k, axis=0).at[order].get(unique_indices=True)
        h = self._mlp(rows.astype(self.dtype), sizes, group)
        h = jnp.where((group < local)[:, None], h, 0)
        h = jnp.pad(h, ((0, tokens * k - len(order)), (0, 0))).at[slot].get(unique_indices=True)
        h = (h.reshape(tokens, k, -1) * weight[..., None].astype(h.dtype)).sum(1)
        return jax.lax.psum(h, "tensor") if size("tensor") > 1 else h

    def _mlp(self, rows: jax.Array, sizes: jax.Array, group: jax.Array) -> jax.Array:
        def layer(features: int, name: str, rows: jax.Array) -> jax.Array:
            dense = Grouped(self.experts, features, not self.gated, self.dtype, name=name)
            return dense(rows, sizes, group)

        if self.gated:
            h = nn.silu(layer(self.hidden, "gate", rows)) * layer(self.hidden, "value", rows)
        else:
            h = nn.gelu(layer(self.hidden, "expand", rows), approximate=True)
        return layer(rows.shape[-1], "contract", h)


class Router(nn.Module):
    """A score of each expert for each token, in float32 whatever the network computes in."""

    experts: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, D] -> logits float32 [T, experts]."""
        init = nn.initializers.xavier_uniform()
        weight = self.param("weight", init, (x.shape[-1], self.experts), jnp.float32)
        return x.astype(jnp.float32) @ weight


def over_places(a: jax.Array) -> jax.Array:
    """The mean of a [B, n, ...] over all places of an example, those of other devices too."""
    total, n = places(), a.shape[1]
    if total is None:
        return a.mean(1)
    real = position("sequence") * n + jnp.arange(n) < total
    return jax.lax.psum(jnp.tensordot(real.astype(a.dtype), a, (0, 1)), "sequence") / total
