"""Bounds on ln p(x): any orders, parallel decoding, and continuous time for uniform noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.discrete.core import CHOSEN, NOISED, Core, negative_log, ranks
from jaxgen.families.discrete.schedules import Schedule
from jaxgen.method import fold

PyTree = Any
GOLDEN = 0.6180339887498949
LEAST = 1e-4
"""Uniform noise: shares below this are left out of the integral, which they change by less than
N LEAST times the largest -ln p."""


def remaining(schedule: Schedule, size: int, steps: int) -> np.ndarray:
    """How many of `size` elements are still masked before each of the steps and after the last.

    floor(size share(1 - i / steps)), and at least one is revealed in every step (MaskGIT, section
    3.2). int [steps + 1], from size to 0. steps <= size.
    """
    # Outside any trace: these are a program's constants.
    with jax.ensure_compile_time_eval():
        share = np.asarray(schedule.share(jnp.linspace(1.0, 0.0, steps + 1)), np.float64)
    wanted = np.floor(size * share + 1e-4).astype(int)
    counts = [size]
    for i in range(1, steps + 1):
        counts.append(min(counts[-1] - 1, max(steps - i, int(wanted[i]))))
    counts[-1] = 0
    return np.asarray(counts)


def masked_bound(
    core: Core,
    params: PyTree,
    x: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    place: jax.Array,
    counts: np.ndarray,
    dropout: jax.Array | None = None,
) -> jax.Array:
    """An unbiased estimate [B] of minus the bound on ln p(x) of decoding in random groups.

    x [B, N] elements. counts: see `remaining`; N, N-1, ..., 0 decodes one by one, in any order, and
    is the continuous-time bound of masked diffusion with any schedule (Hoogeboom et al. 2022; Shi
    et al. 2024): steps x (elements revealed / masked) x the masked elements' -ln p, at step number
    floor(steps place) with place [B] in [0, 1), and a uniform choice of what is masked.
    """
    steps = len(counts) - 1
    step = jnp.minimum((place * steps).astype(jnp.int32), steps - 1)
    before = jnp.asarray(counts, jnp.int32)[step]
    weight = jnp.asarray(steps * (counts[:-1] - counts[1:]) / counts[:-1], jnp.float32)[step]
    chosen = ranks(keys, core.size) < before[:, None]
    noised = core.noised(keys, x, chosen)
    t = core.schedule.time(before / core.size)
    logits = core.logits(params, noised, labels, t, dropout)
    return weight * jnp.where(chosen, negative_log(logits, x), 0.0).sum(1)


def uniform_bound(
    core: Core,
    params: PyTree,
    x: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    place: jax.Array,
    dropout: jax.Array | None = None,
) -> jax.Array:
    """The same for uniform noise, in continuous time: [B].

    The divergence of two jump processes (Shaul et al. 2025, section 5): 1 / share times the sum of
    -ln p(x_i) [noised_i != x_i] + [noised_i = x_i] - p(noised_i), at a share of noise uniform in
    (LEAST, 1).
    """
    share = LEAST + (1 - LEAST) * place
    draws = jax.vmap(lambda k: jax.random.uniform(k, (core.size,)))(fold(keys, CHOSEN))
    noised = core.noised(fold(keys, NOISED), x, draws < share[:, None])
    t = core.schedule.time(share)
    logits = core.logits(params, noised, labels, t, dropout)
    same = noised == x
    stay = 1 - jnp.exp(-negative_log(logits, noised))
    terms = jnp.where(same, stay, stay - 1 + negative_log(logits, x))
    return terms.sum(1) / share * (1 - LEAST)


def bound(
    core: Core,
    params: PyTree,
    x: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    place: jax.Array,
    counts: np.ndarray | None = None,
    dropout: jax.Array | None = None,
) -> jax.Array:
    """Minus the bound of the core's noise, one estimate [B]; counts None: one by one."""
    if core.noise == "uniform":
        return uniform_bound(core, params, x, labels, keys, place, dropout)
    if counts is None:
        counts = np.arange(core.size, -1, -1)
    return masked_bound(core, params, x, labels, keys, place, counts, dropout)


def places(keys: jax.Array, draw: jax.Array | int) -> jax.Array:
    """Number `draw` of a sequence that is even over [0, 1), from a start of each key's: [B]."""
    offset = jax.vmap(jax.random.uniform)(keys)
    return (offset + jnp.asarray(draw, jnp.float32) * GOLDEN) % 1.0
