"""Tuning by a contrast: a trained model against a frozen copy of itself, as a discriminator.

The log-ratio beta ln p(x | c) / p_ref(x | c) says how much more the model likes x than the copy
does. `cca` raises it for an image's own label and lowers it for another's, which gives samples the
sharpness of guidance without a second call (Chen et al., "Toward Guidance-Free AR Visual Generation
via Condition Contrastive Alignment", 2024, eq. 12). `ddo` raises it for data and lowers it for the
copy's own samples, whose optimum is the data's law (Zheng et al., "Direct Discriminative
Optimization", 2025, eq. 9). For every family that classifies: likelihoods exact, or by errors at
noise that both share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    frozen_with,
    having,
    only_learner,
    retrained,
)
from jaxgen.method.streams import LABEL, OTHER, check_dropout, drop_labels, example_keys, fold
from jaxgen.tune.ratio import log_ratio

PyTree = Any
PAIRS, DRAWS = 2**32 - 6, 2**32 - 7
"""Of a step's key: what the two losses draw, and what the copy's samples are drawn from."""


def cca(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    beta: float = 0.02,
    weight: float = 1.0,
    draws: int = 2,
    label_dropout: float = 0.1,
    teacher: str = "teacher",
) -> Method:
    """-ln s(r(x, c)) - weight ln s(-r(x, c')), c' another label than c, s the logistic function.

    Its optimum is r = ln p(x | c) / (weight p(x | not c)): images that speak for their class.
    networks[teacher]: the model as it was; start from it too (`config.start`). beta: small moves
    far. draws: errors that a likelihood is estimated by, where it is not exact. label_dropout:
    share of labels dropped; such rows have no negative. Raises UsageError: no such network, a
    method that does not classify, fewer than two classes.
    """
    if spec.num_classes < 2:
        raise invalid("tune.contrast.cca", f"{spec.num_classes} classes", "two classes or more")

    def negatives(params: PyTree, batch: Batch, keys: jax.Array, key: jax.Array) -> Any:
        n = spec.num_classes
        ahead = jax.vmap(lambda k: jax.random.randint(k, (), 1, n))(fold(keys, OTHER))
        return batch["image"], (batch["label"] + ahead) % n

    return _contrasted(
        method, "cca", spec, networks, teacher, negatives, beta, weight, draws, label_dropout
    )


def ddo(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    beta: float = 0.05,
    weight: float = 1.0,
    draws: int = 2,
    label_dropout: float = 0.1,
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """-ln s(r(x, c)) - weight ln s(-r(y, c)), y a sample of the copy for c.

    With beta = weight = 1 its optimum is p = p_data, whatever the copy; further rounds start from
    the last one's result. sample: options of the copy's sampler (a `sample` section: as few calls
    as will do, since each step draws). Else as `cca`.
    """

    def negatives(params: PyTree, batch: Batch, keys: jax.Array, key: jax.Array) -> Any:
        other = networks[teacher].method
        own = example_keys(jax.random.fold_in(key, DRAWS), batch)
        drawn = other.sampler(**(sample or {})).fn(params["frozen"][teacher], own, batch["label"])
        return jax.lax.stop_gradient(drawn), batch["label"]

    made = _contrasted(
        method, "ddo", spec, networks, teacher, negatives, beta, weight, draws, label_dropout
    )
    return retrained(made, needed=[having(networks, [teacher], "sampler")])


def _contrasted(
    method: Method,
    name: str,
    spec: Spec,
    networks: Mapping[str, Any],
    teacher: str,
    negatives: Callable[..., tuple[jax.Array, jax.Array]],
    beta: float,
    weight: float,
    draws: int,
    label_dropout: float,
) -> Method:
    """The method whose loss is that contrast; negatives(params, batch, keys, key) -> (x, label)."""
    option = f"tune.contrast.{name}"
    base = only_learner(method, option)
    ratio = log_ratio(method, networks, teacher, option, draws)
    if not (beta > 0 and weight >= 0 and draws >= 1):
        allowed = "beta > 0, weight >= 0, draws >= 1"
        raise invalid(option, (beta, weight, draws), allowed)
    check_dropout(label_dropout)

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys = example_keys(jax.random.fold_in(key, PAIRS), batch)
        labels = drop_labels(fold(keys, LABEL), batch["label"], label_dropout, spec.null_label)
        told = labels != spec.null_label
        x, wrong = negatives(params, batch, keys, key)
        for_data = beta * ratio(params, batch["image"], labels, keys)
        for_other = beta * ratio(params, x, jnp.where(told, wrong, labels), keys)
        judged = jax.nn.softplus(-for_data) + weight * told * jax.nn.softplus(for_other)
        metrics = {"log_ratio": for_data.mean(), "log_ratio_negative": for_other.mean()}
        return judged.mean(), (metrics, extra)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = frozen_with(method, spec, networks, teacher)
    needed = [having(networks, [teacher], "label_error")]
    made = retrained(method, needed, learners=learners, frozen=frozen)
    return dataclasses.replace(made, train_flops=None)
