"""Small parts that several networks share: noise embeddings, remat policies, norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown

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


def rematerialised(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module class with one of the `REMAT` policies; UsageError for another name."""
    return block if _policy(policy) == "none" else nn.remat(block, policy=REMAT[policy])


def checkpointed(body: Callable[..., Any], policy: str, *, in_scan: bool) -> Callable[..., Any]:
    """A function with one of the `REMAT` policies; UsageError for another name.

    in_scan: it is a scan's body, where XLA cannot merge the recomputation with the forward pass, so
    that the (slow) barrier against merging is left out.
    """
    if _policy(policy) == "none":
        return body
    return jax.checkpoint(body, policy=REMAT[policy], prevent_cse=not in_scan)


def _policy(name: str) -> str:
    if name not in REMAT:
        raise unknown("model.remat", name, REMAT)
    return name


def sinusoidal(
    values: jax.Array, dim: int, *, max_period: float = 10_000.0, endpoint: bool = False
) -> jax.Array:
    """Sinusoidal features of numbers: [B] -> float32 [B, dim], cosines first, then sines.

    Angular frequencies max_period ** (-i / (dim / 2)) for i = 0 .. dim / 2 - 1, as in DiT and ADM
    (Dhariwal & Nichol 2021; Vaswani et al. 2017, sec. 3.5). dim must be even. endpoint: dim / 2 - 1
    in the place of dim / 2, so that the lowest is 1 / max_period, as in DDPM and DDPM++ (Ho et al.
    2020), which have the sines first (`sines_first`).
    """
    half = dim // 2
    step = -math.log(max_period) / max(half - endpoint, 1)
    frequencies = jnp.exp(step * jnp.arange(half, dtype=jnp.float32))
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sines_first(features: jax.Array) -> jax.Array:
    """Features [B, dim] of cosines, then sines, with the halves exchanged."""
    cosines, sines = jnp.split(features, 2, axis=-1)
    return jnp.concatenate([sines, cosines], axis=-1)


class Fourier(nn.Module):
    """Random Fourier features of numbers (Tancik et al. 2020), cosines first, then sines.

    Of 2 pi f times the value, f normal of standard deviation `scale`: drawn once and part of the
    checkpoint, not trained. To be called `jaxgen.method.CONSTANTS`.
    """

    dim: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """values [B] -> float32 [B, dim]."""
        init = nn.initializers.normal(self.scale)
        frequencies = self.param("frequencies", init, (self.dim // 2,), jnp.float32)
        frequencies = jax.lax.stop_gradient(frequencies)
        angles = values.astype(jnp.float32)[:, None] * (2 * jnp.pi * frequencies)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class NoiseEmbedding(nn.Module):
    """A noise level [B] -> [B, width]: sinusoidal features of time_scale * noise, then an MLP.

    Or several numbers [B, n] (two times, for maps from one to the other), features side by side.
    endpoint: of `sinusoidal`.
    """

    width: int
    time_scale: float = 1000.0
    frequencies: int = 256
    dtype: Any = jnp.float32
    endpoint: bool = False

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """Return the embedding [B, width] of the noise levels [B] or [B, n]."""
        init = nn.initializers.normal(0.02)
        numbers = self.time_scale * noise.astype(jnp.float32)
        h = sinusoidal(numbers.reshape(-1), self.frequencies, endpoint=self.endpoint)
        h = h.reshape(noise.shape[0], -1)
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


def fill(module: Any, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the fields of a module that are 0 (or ()) what `sizes` says of its `size`; others stay.

    For its `__post_init__`. Raises UsageError for a size that is not there.
    """
    if module.size not in sizes:
        raise unknown("model.size", module.size, sizes)
    for field, value in sizes[module.size].items():
        if not getattr(module, field):
            setattr(module, field, value)


def patched(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Sizes of a transformer with the patches of the papers: "S" becomes "S/2", "S/4", "S/8"."""
    return {f"{s}/{p}": {**fields, "patch": p} for s, fields in sizes.items() for p in (2, 4, 8)}


def tapped(outputs: Mapping[str, jax.Array], taps: Sequence[str]) -> dict[str, jax.Array]:
    """Those of blocks' outputs that `taps` names; UsageError that lists all for another name."""
    for name in taps:
        if name not in outputs:
            raise invalid("taps", name, ", ".join(outputs))
    return {name: outputs[name] for name in taps}


def attention_maps(sown: Any, height: int, width: int) -> dict[int | str, jax.Array]:
    """What a network's attention layers sowed, as pictures: a layer's number or name -> [B, h, w].

    sown: the collection "intermediates" of `DiT` or `UNet` at images of height x width, of whose
    shape the pictures are. `nn.parallel.received` says what they show.
    """
    flat: dict[int | str, jax.Array] = {}
    for name, kept in sown.items():
        if "layers" in kept:
            flat.update(enumerate(kept["layers"][0]["received"][0]))
        elif "received" in kept:
            flat[name] = kept["received"][0]

    def picture(a: jax.Array) -> jax.Array:
        rows = round(math.sqrt(a.shape[1] * height / width))
        return a.reshape(a.shape[0], rows, -1)

    return {name: picture(a) for name, a in flat.items()}
