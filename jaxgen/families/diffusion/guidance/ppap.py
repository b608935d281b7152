"""Practical plug-and-play (Go et al. 2023): an off-the-shelf classifier, an expert a noise range.

An expert is the frozen classifier with a few parameters of its own (`adapters`), taught without
data or labels: by the classifier's answers at clean samples of the diffusion model (`transfer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path
from jaxgen.method import fold, normal
from jaxgen.method.streams import PAIR_NOISE, PAIR_TIME

PyTree = Any
Logits = Callable[[jax.Array, jax.Array], jax.Array]
"""(x[B, ...], t [] or [B]) -> [B, C]."""


def by_noise(experts: Sequence[Logits], edges: Sequence[float]) -> Logits:
    """The expert whose range of times t is in: experts[n] from edges[n - 1] up to below edges[n].

    edges: one fewer than experts, rising, in (0, 1). At one time for all only that expert runs;
    where each image has its own, all of them do. One expert is that expert.
    """
    ends = tuple(edges)
    if len(ends) != len(experts) - 1 or list(ends) != sorted({*ends}) or not _inside(ends):
        allowed = f"{len(experts) - 1} rising times in (0, 1), for {len(experts)} experts"
        raise invalid("ppap.edges", ends, allowed)
    if len(experts) == 1:
        return experts[0]
    limits = jnp.asarray(ends, jnp.float32)

    def logits(x: jax.Array, t: jax.Array) -> jax.Array:
        number = jnp.searchsorted(limits, t.astype(jnp.float32), side="right")
        if not t.ndim:
            return jax.lax.switch(number, experts, x, t)
        every = jnp.stack([expert(x, t) for expert in experts])
        return jnp.take_along_axis(every, number[None, :, None], axis=0)[0]

    return logits


def log_prob(logits: Logits, labels: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """ln p(labels | x) [B] of logits, for `guidance.classifier`; labels [B]."""

    def value(x: jax.Array, t: jax.Array) -> jax.Array:
        log = jax.nn.log_softmax(logits(x, t), axis=-1)
        return jnp.take_along_axis(log, labels[:, None], axis=-1)[:, 0]

    return value


def transfer(
    teacher: Callable[[jax.Array], jax.Array],
    expert: Logits,
    x0: jax.Array,
    keys: jax.Array,
    path: Path,
    low: float | jax.Array = 0.0,
    high: float | jax.Array = 1.0,
) -> jax.Array:
    """The mean of KL(teacher(x0) || expert(x_t, t)) in nats, t uniform in [low, high).

    teacher(x0[B, ...]) -> logits [B, C]; x0: samples of the diffusion model, no labels; keys [B].
    For KL's minimum over all functions of x_t is E[teacher's probabilities | x_t], which is
    p(label | x_t) where the teacher's is p(label | x0).
    """
    span = high - low
    t = low + span * jax.vmap(jax.random.uniform)(fold(keys, PAIR_TIME))
    x = path.mix(x0, normal(fold(keys, PAIR_NOISE), x0.shape[1:]), t)
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher(x0)), axis=-1)
    given = jax.nn.log_softmax(expert(x, t), axis=-1)
    return (jnp.exp(wanted) * (wanted - given)).sum(-1).mean()


def adapters(params: PyTree, rank: int, key: jax.Array) -> PyTree:
    """Changes of `params`, 0 at first: of low rank for matrices (Hu et al. 2022).

    A matrix [..., I, O] gets (down [..., I, rank], up [..., rank, O] = 0), any other leaf a change
    of its shape, 0.
    """
    if rank < 1:
        raise invalid("ppap.rank", rank, "rank >= 1")
    leaves, tree = jax.tree.flatten(params)

    def fresh(leaf: jax.Array, leaf_key: jax.Array) -> Any:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        *batch, inputs, outputs = leaf.shape
        down = jax.random.normal(leaf_key, (*batch, inputs, rank), leaf.dtype) * inputs**-0.5
        return down, jnp.zeros((*batch, rank, outputs), leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    fresh_leaves = [fresh(leaf, leaf_key) for leaf, leaf_key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, fresh_leaves)


def adapted(params: PyTree, changes: PyTree) -> PyTree:
    """`params` with what `adapters` made added: the frozen network becomes an expert."""

    def add(leaf: jax.Array, change: Any) -> jax.Array:
        return leaf + (change[0] @ change[1] if isinstance(change, tuple) else change)

    return jax.tree.map(add, params, changes)


def _inside(ends: Sequence[float]) -> bool:
    return all(0 < end < 1 for end in ends)
