"""The exact denoiser of a finite data set, smoothed so that it makes new samples.

Closed-Form Diffusion Models (Scarvelis, Borde & Solomon 2023). Without smoothing it is the oracle
that a network trained to its optimum would be: it samples the data set itself.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.core.prediction import Prediction, from_x0


def closed_form(
    path: Path,
    points: jax.Array,
    *,
    smoothing: float = 0.0,
    draws: int = 16,
    neighbours: int | None = None,
    others: int = 0,
    key: jax.Array | None = None,
) -> Denoiser:
    """E[x0 | x_t] for x0 uniform over `points` [N, ...], averaged over a ball of noise around x_t.

    x0 = sum_i k_i points_i, k = softmax(-|x - alpha points_i|^2 / (2 sigma^2)).
    smoothing > 0: the mean of x0 at x + smoothing e_m over `draws` fixed noises,
    drawn from `key` (default: 0) in pairs e, -e so that their mean is 0. A sample then
    ends at the mean of `draws` points, not at one.

    neighbours: take only the nearest of the points into the softmax, and `others` random ones of
    the rest, each standing for (N - neighbours) / others of them; which ones
    depends on the keys of the call. None: all points.

    Raises UsageError for values out of range.
    """
    size = len(points)
    if smoothing < 0:
        raise invalid("closed_form.smoothing", smoothing, "smoothing >= 0")
    if draws < 2 or draws % 2:
        raise invalid("closed_form.draws", draws, "an even number >= 2")
    if neighbours is None and others:
        raise invalid("closed_form.others", others, "0 where neighbours is None")
    if neighbours is not None and not 1 <= neighbours <= size:
        raise invalid("closed_form.neighbours", neighbours, f"1 to {size}, the number of points")
    if neighbours is not None and not 0 <= others <= size - neighbours:
        raise invalid("closed_form.others", others, f"0 to {size - neighbours}")
    table = points.reshape(size, -1).astype(jnp.float32)

    def estimate(keys: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """E[x0 | x_t = x] for x [B, D] and t [B]."""
        alpha = path.alpha(t)[:, None]
        variance = jnp.maximum(path.sigma(t)[:, None] ** 2, TINY)
        # |x|^2 is the same for every point, so the softmax does not need it.
        logits = (alpha * (x @ table.T) - 0.5 * alpha**2 * (table**2).sum(1)) / variance
        if neighbours is None:
            return jax.nn.softmax(logits) @ table
        chosen, weight = _subset(keys, logits, neighbours, others)
        share = jax.nn.softmax(jnp.take_along_axis(logits, chosen, 1) + weight)
        return jnp.einsum("bk,bkd->bd", share, table[chosen])

    if smoothing:
        half = jax.random.normal(
            jax.random.key(0) if key is None else key, (draws // 2, table.shape[1])
        )
        noises = smoothing * jnp.concatenate([half, -half])
    else:
        noises = jnp.zeros((1, table.shape[1]))

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        flat, times = x.reshape(x.shape[0], -1), jnp.broadcast_to(t, x.shape[:1])
        x0 = jax.lax.map(
            lambda e: estimate(keys, flat + e, times), noises, batch_size=min(16, len(noises))
        ).mean(0)
        return from_x0(x0.reshape(x.shape), x, t, path), memory

    return Denoiser(call, path=path)


def _subset(
    keys: jax.Array, logits: jax.Array, neighbours: int, others: int
) -> tuple[jax.Array, jax.Array]:
    """(indices [B, k + l], ln of how many points each stands for [k + l]).

    The k largest of logits [B, N] for themselves, and l of the rest without replacement.
    """
    size = logits.shape[1]
    nearest = jax.lax.top_k(logits, neighbours)[1]
    if not others:
        return nearest, jnp.zeros(neighbours)
    order = jax.vmap(lambda k: jax.random.uniform(k, (size,)))(keys)
    order = jax.vmap(lambda row, taken: row.at[taken].set(-1.0))(order, nearest)
    random = jax.lax.top_k(order, others)[1]
    weight = (
        jnp.zeros(neighbours + others).at[neighbours:].set(math.log((size - neighbours) / others))
    )
    return jnp.concatenate([nearest, random], axis=1), weight
