"""Small parts that several networks share: noise embeddings, remat policies, layer stacking."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import unknown

# What the backward pass keeps of a block: everything; nothing but its input; its weight matmuls.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


def compute_dtype(name: str) -> jnp.dtype:
    """The compute dtype of that name; UsageError for one that networks do not run in."""
    if name not in DTYPES:
        raise unknown("model.dtype", name, DTYPES)
    return jnp.dtype(name)


def rematerialised(block: type[nn.Module], policy: str, *, in_scan: bool) -> type[nn.Module]:
    """The module class with one of the `REMAT` policies; UsageError for another name.

    in_scan: the block is a scan's body, where XLA cannot merge the recomputation with the forward
    pass, so that the (slow) barrier against merging is left out.
    """
    if policy not in REMAT:
        raise unknown("model.remat", policy, REMAT)
    if policy == "none":
        return block
    return nn.remat(block, policy=REMAT[policy], prevent_cse=not in_scan)


def as_batch(tree: Any) -> Any:
    """Arrays whose axis 0 lies on devices as the batch does: cut along `data` and `fsdp`.

    Only where such a mesh is in force (`training.loop.make_step`); elsewhere, and inside
    `shard_map`, they are returned as they are. Without it XLA may gather activations to save moving
    weights, which are smaller.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    if mesh.empty or not automatic or not {"data", "fsdp"} <= set(mesh.axis_names):
        return tree
    cut = jax.sharding.PartitionSpec(("data", "fsdp"))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, cut), tree)


def stacked(block: type[nn.Module], depth: int, *, scan: bool, remat: str) -> type[nn.Module]:
    """`depth` layers of one block as one module whose parameters are stacked on a new axis 0.

    block: __call__(x, *shared) -> (x, None), where `shared` goes to every layer alike. scan=True
    compiles the block once (compile time flat in depth); scan=False unrolls the same loop over the
    same stacked parameters, so that a checkpoint fits both. Axis 0 of x is the batch's, or the
    batch's and the places'; see `as_batch`.
    """

    class Layer(block):  # type: ignore[misc, valid-type]
        def __call__(self, x: Any, *shared: Any) -> tuple[Any, None]:
            x, _ = super().__call__(as_batch(x), *shared)
            return as_batch(x), None

    return nn.scan(
        rematerialised(Layer, remat, in_scan=scan),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
        unroll=1 if scan else depth,
    )


def sinusoidal(values: jax.Array, dim: int, *, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal features of numbers: [B] -> float32 [B, dim], cosines first, then sines.

    Angular frequencies max_period ** (-i / (dim / 2)) for i = 0 .. dim / 2 - 1, as in DiT and ADM
    (Dhariwal & Nichol 2021; Vaswani et al. 2017, sec. 3.5). dim must be even.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fourier(values: jax.Array, dim: int, *, scale: float = 16.0) -> jax.Array:
    """Random Fourier features of numbers (Tancik et al. 2020): [B] -> float32 [B, dim].

    Cosines and sines of 2 pi f times the value, f normal of standard deviation `scale`. The
    frequencies are constants of the network (drawn with a fixed seed), not parameters.
    """
    frequencies = 2 * np.pi * scale * np.random.default_rng(0).standard_normal(dim // 2)
    angles = values.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class NoiseEmbedding(nn.Module):
    """A noise level [B] -> [B, width]: sinusoidal features of time_scale * noise, then an MLP."""

    width: int
    time_scale: float = 1000.0
    frequencies: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """Return the embedding [B, width] of the noise levels [B]."""
        init = nn.initializers.normal(0.02)
        h = sinusoidal(self.time_scale * noise.astype(jnp.float32), self.frequencies)
        h = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="hidden")(h)
        return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(nn.silu(h))


def normalise(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without scale or shift, in float32; float32 out."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (1 + scale) + shift: adaptive normalisation's affine part (Perez et al. 2018)."""
    return x * (1 + scale) + shift
