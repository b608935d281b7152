"""Random streams: what each number of a key is for, and draws with a key an example.

A step's key comes from (seed, step). An example's key is `fold_in(step's key, place in the global
batch)`, and what it is used for is a further `fold_in` of one of the names below: never a bare
integer, never a rank or a device. What belongs to no example takes numbers from the top of the
range, which no batch reaches.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import UsageError, invalid

Batch = dict[str, jax.Array]

NOISE, TIME, LABEL, OTHER = range(4)
"""An example's streams: its noise, its time, whether its label is dropped, what else it draws."""

START, STEPS = range(2)
"""A sample's streams: what its sampler starts from, and its steps, each below fold_in(., n)."""

CALL = 1
"""A sampler step's stream of its network call, where the step draws its `NOISE` itself."""

PAIR_TIME, PAIR_NOISE = range(2)
"""Streams of a noised draw, t before eps, outside of the training loss."""

DROPOUT, STEP_TIME, LEARNERS = 2**32 - 1, 2**32 - 2, 2**31
"""A step's own streams: dropout, times that are drawn together, and one for each learner's step."""


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """fold_in of one number into each of keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal noise [B, *shape], row i from keys[i] alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)


def no_label(labels: Any, null_label: int) -> Any:
    """ "No label" for each of labels [B].

    Of a tree of conditions [B, ...] (`jaxgen.nn.conditions`), none of any: -1, or NaN.
    """
    bare = jax.tree_util.all_leaves([labels])

    def none(a: jax.Array) -> jax.Array:
        if jnp.issubdtype(a.dtype, jnp.integer):
            return jnp.full_like(a, null_label if bare else -1)
        return jnp.full_like(a, jnp.nan)

    return jax.tree.map(none, labels)


def drop_labels(keys: jax.Array, labels: Any, share: float, null_label: int) -> Any:
    """labels [B] with a share of them replaced by "no label" (Ho & Salimans 2022); keys [B].

    Of a tree of conditions all are dropped together (see `no_label`).
    """
    dropped = jax.vmap(jax.random.uniform)(keys) < share

    def drop(a: jax.Array, none: jax.Array) -> jax.Array:
        return jnp.where(dropped.reshape(-1, *[1] * (a.ndim - 1)), none, a)

    return jax.tree.map(drop, labels, no_label(labels, null_label))


def check_dropout(share: float) -> None:
    """Refuse a share of dropped labels (`method.label_dropout`) outside [0, 1)."""
    if not 0 <= share < 1:
        raise invalid("method.label_dropout", share, "0 <= label_dropout < 1")


def never_dropped(guidance: Any, option: str = "guidance") -> UsageError:
    """The error of guidance that asks a model for "no label" that was trained with labels only."""
    return invalid(
        option,
        guidance,
        "1: this model was trained without label dropout",
        "Train with method.label_dropout=0.1 to guide it.",
    )


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One key per example, from the step's key and its place in the global batch: keys [B].

    The place comes from `batch["index"]`, never from a rank or a device, so the noise is the same
    on any number of devices, hosts and microbatches.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])


def dropout_key(key: jax.Array, batch: Batch) -> jax.Array:
    """The key of a microbatch for `nn.parallel.Dropout`, apart from every example's."""
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), batch["microbatch"])
