"""Thresholding of the data estimate: keeps x0 where data can be."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0


def static(guided: Denoiser, path: Path, *, bound: float = 1.0) -> Denoiser:
    """x0 clipped to [-bound, bound]; eps follows from x and the new x0 (Ho et al. 2020)."""
    if bound <= 0:
        raise invalid("guidance.bound", bound, "bound > 0")
    return _replace_x0(guided, path, lambda x0: jnp.clip(x0, -bound, bound))


def dynamic(guided: Denoiser, path: Path, *, quantile: float = 0.995) -> Denoiser:
    """x0 clipped to [-q, q] and divided by q, q = max(1, the image's quantile of |x0|).

    Saharia et al. 2022 (Imagen), section 2.3. Each image has its own q.
    """
    if not 0 < quantile <= 1:
        raise invalid("guidance.quantile", quantile, "0 < quantile <= 1")

    def threshold(x0: jax.Array) -> jax.Array:
        q = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        q = expand(jnp.maximum(q, 1.0), x0)
        return jnp.clip(x0, -q, q) / q

    return _replace_x0(guided, path, threshold)


def _replace_x0(guided: Denoiser, path: Path, change: Callable[[jax.Array], jax.Array]) -> Denoiser:
    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = guided(keys, x, t, memory)
        return from_x0(change(p.x0), x, t, path, p.variance), memory

    return Denoiser(call, init=guided.init, calls=guided.calls, path=path)
