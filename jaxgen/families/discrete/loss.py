"""The loss of masked and discrete diffusion: cross-entropy of noised elements, or the bound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.discrete.bounds import bound
from jaxgen.families.discrete.core import CHOSEN, NOISED, Core, negative_log
from jaxgen.method import (
    Batch,
    LossFn,
    Metrics,
    check_dropout,
    drop_labels,
    dropout_key,
    example_keys,
    fold,
)

PyTree = Any
DROPPED, TIME, NOISE = range(3)
"""An example's streams: whether its label is dropped, its time, and its noise."""


def interpolant_loss(
    core: Core, *, weighting: str, label_smoothing: float, label_dropout: float
) -> LossFn:
    """See `method.discrete_interpolants` for the options. UsageError: values out of range."""
    if weighting not in ("simple", "elbo"):
        raise invalid("method.weighting", weighting, "'simple', 'elbo'")
    check_dropout(label_dropout)
    if not 0 <= label_smoothing < 1:
        raise invalid("method.label_smoothing", label_smoothing, "0 <= label_smoothing < 1")
    if label_smoothing and weighting == "elbo":
        raise invalid("method.label_smoothing", label_smoothing, "0 with weighting='elbo'")
    # The share of noised tokens, on average over times: what "simple" is divided by.
    grid = jnp.linspace(0.0, 1.0, 2001)
    with jax.ensure_compile_time_eval():
        mean_share = float(core.schedule.share(0.5 * (grid[1:] + grid[:-1])).mean())

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        keys, null = example_keys(key, batch), core.spec.null_label
        labels = drop_labels(fold(keys, DROPPED), batch["label"], label_dropout, null)
        dropout = dropout_key(key, batch)
        x = core.elements(batch["image"])
        t = jax.vmap(jax.random.uniform)(fold(keys, TIME))
        noise_keys = fold(keys, NOISE)
        if weighting == "elbo":
            nats = bound(core, params["net"], x, labels, noise_keys, t, dropout=dropout)
            return nats.mean() / core.size, ({}, extra)
        share = core.schedule.share(t)[:, None]
        draws = jax.vmap(lambda k: jax.random.uniform(k, (core.size,)))(fold(noise_keys, CHOSEN))
        chosen = draws < share
        noised = core.noised(fold(noise_keys, NOISED), x, chosen)
        logits = core.logits(params["net"], noised, labels, t, dropout)
        error = negative_log(logits, x)
        if label_smoothing:
            flat = -jax.nn.log_softmax(logits, axis=-1).mean(-1)
            error = (1 - label_smoothing) * error + label_smoothing * flat
        if core.noise == "uniform":
            return error.mean(), ({}, extra)
        return (error * chosen).mean() / mean_share, ({}, extra)

    return loss
