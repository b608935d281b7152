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

DROPOUT, STEP_TIME, LEARNERS = 2**32 - 1, 2**32 - 2, 2**31
"""A step's own streams: dropout, times that are drawn together, and one for each learner's step."""


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """fold_in of one number into each of keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal noise [B, *shape], row i from keys[i] alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)


def no_label(labels: jax.Array, null_label: int) -> jax.Array:
    """ "No label" for each of labels [B]; of descriptions [B, ...] in their place, NaN."""
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    return jnp.full_like(labels, null_label if integers else jnp.nan)


def drop_labels(keys: jax.Array, labels: jax.Array, share: float, null_label: int) -> jax.Array:
    """labels [B] with a share of them replaced by "no label" (Ho & Salimans 2022); keys [B].

    Or descriptions [B, ...] in their place (see `no_label`).
    """
    dropped = jax.vmap(jax.random.uniform)(keys) < share
    dropped = dropped.reshape(-1, *[1] * (labels.ndim - 1))
    return jnp.where(dropped, no_label(labels, null_label), labels)


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
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), batch["part"])
