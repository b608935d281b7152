"""Retraining on one's own samples, with real data mixed in and with curation.

fit -> draw -> curate -> mix with real -> fit: the loop of Bertrand et al. 2024 ("On the Stability
of Iterative Retraining of Generative Models on their own Data") and, curated, of Ferbach et al.
2024 ("Self-Consuming Generative Models with Curated Data Provably Optimize Human Preferences").
Without real data it collapses; with enough it is stable; curation makes it optimise the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

PyTree = Any
# (examples [n, ...], key) -> parameters; (parameters, key, n) -> samples [n, ...].
Fit = Callable[[jax.Array, jax.Array], PyTree]
FIRST = 0
"""The stream of the first generation, that of real data; generation n has stream n."""

Draw = Callable[[PyTree, jax.Array, int], jax.Array]
# (key, candidates [n, K, ...]) -> chosen [n, ...]
Curate = Callable[[jax.Array, jax.Array], jax.Array]


def retrain(
    fit: Fit,
    draw: Draw,
    first: jax.Array,
    key: jax.Array,
    *,
    generations: int,
    synthetic: int,
    real: jax.Array | None = None,
    curate: Curate | None = None,
    candidates: int = 1,
) -> Iterator[PyTree]:
    """Parameters of generation 0, which is fitted to `first` [n, ...], and of each after it.

    Each of the `generations` that follow is fitted to `real` [m, ...] (None: nothing real) followed
    by `synthetic` samples of the one before; m / (m + synthetic) is the share of real data. curate:
    chooses each of them among `candidates` samples (`by_reward`). fit may keep what it found last,
    to start from there. Raises UsageError for counts out of range.
    """
    if generations < 0:
        raise invalid("generations", generations, ">= 0")
    if synthetic < 1:
        raise invalid("synthetic", synthetic, "samples >= 1")
    if candidates < 1 or (candidates > 1) != (curate is not None):
        raise invalid("candidates", candidates, "1 without `curate`, 2 or more with it")
    if not len(first) or (real is not None and real.shape[1:] != first.shape[1:]):
        shapes = first.shape if real is None else (first.shape, real.shape)
        raise invalid("first, real", shapes, "[n, ...] and [m, ...] of equal examples, n >= 1")
    return _generations(fit, draw, first, key, generations, synthetic, real, curate, candidates)


def _generations(
    fit: Fit,
    draw: Draw,
    first: jax.Array,
    key: jax.Array,
    generations: int,
    synthetic: int,
    real: jax.Array | None,
    curate: Curate | None,
    candidates: int,
) -> Iterator[PyTree]:
    params = fit(first, jax.random.fold_in(key, FIRST))
    yield params
    for generation in range(1, generations + 1):
        keys = jax.random.split(jax.random.fold_in(key, generation), 3)
        made = draw(params, keys[0], synthetic * candidates)
        if curate is not None:
            made = curate(keys[1], made.reshape(synthetic, candidates, *made.shape[1:]))
        data = made if real is None else jnp.concatenate([real, made])
        params = fit(data, keys[2])
        yield params


def by_reward(reward: Callable[[jax.Array], jax.Array]) -> Curate:
    """Choose x_i among K with probability exp r(x_i) / sum_j exp r(x_j).

    reward: samples [n, ...] -> [n]. Of two this is Bradley and Terry's model of preference, of K
    Plackett and Luce's. Fitted exactly, the next law is p(x) E[K e^r(x) / (e^r(x) + the sum over
    K - 1 draws)], which tends to p(x) e^r(x), normalised, as K grows (Ferbach et al., lemma 2.2).
    """

    def curate(key: jax.Array, candidates: jax.Array) -> jax.Array:
        n, k = candidates.shape[:2]
        rewards = reward(candidates.reshape(n * k, *candidates.shape[2:]))
        if rewards.shape != (n * k,):
            raise invalid("reward", rewards.shape, f"one number a sample: ({n * k},)")
        chosen = jax.random.categorical(key, rewards.reshape(n, k))
        return candidates[jnp.arange(n), chosen]

    return curate
