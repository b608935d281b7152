"""Tuning by preferences: of two examples the model learns to like the better one more.

Direct preference optimization (Rafailov et al. 2023, eq. 7) by the log-ratio to a frozen copy, for
every family that classifies; of diffusion models by errors at the same noise (Wallace et al.,
"Diffusion Model Alignment Using Direct Preference Optimization", 2023, eq. 14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.config import Later
from jaxgen.data import normalise
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    frozen_with,
    having,
    only_learner,
    require_column,
    retrained,
)
from jaxgen.method.streams import example_keys, fold
from jaxgen.tune.ratio import log_ratio
from jaxgen.tune.rewards import scored

PyTree = Any
PAIRS = 2**32 - 11
"""Of a step's key: what a pair is compared by, and drawn from."""
FIRST, SECOND = range(2)
"""Of an example's key: which of its pair."""


def dpo(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    loser: str | None = None,
    reward: Later | Any = None,
    data: bool = False,
    beta: float = 0.1,
    draws: int = 2,
    similarity: float = 0.0,
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """-ln s(beta (r(winner) - r(loser))), r = ln p / p_ref, s the logistic function.

    Where the winner x wins against y with probability s(R(x) - R(y)), as Bradley and Terry have it,
    the optimum is p in proportion to p_ref exp(R / beta). networks[teacher] is p_ref: the model as
    it was; start from it too (`config.start`).

    loser: a column of the data with the worse of each pair, like images; the batch's own is the
    better. Or reward: a section that builds fn(x [B, *shape], labels [B]) -> R [B]
    (`jaxgen.frozen.rewards`), or such a function; pairs are then two samples of the copy for a
    label, or, with data=True, the batch's own example and one sample (Miao et al. 2024), and s(R(x)
    - R(y)) is taken as it is in the place of a judgement. Pairs whose reward is not finite are left
    out, and the metric `unscored` is their share. draws: errors that a likelihood is estimated by,
    where it is not exact. similarity: weight of the method's own loss on the batch. sample: options
    of the copy's sampler. Raises UsageError: no such network or column, not one of loser and
    reward, a method that does not classify.
    """
    option = "tune.preference.dpo"
    base = only_learner(method, option)
    ratio = log_ratio(method, networks, teacher, option, draws)
    if (loser is None) == (reward is None):
        raise invalid(option, {"loser": loser, "reward": reward}, "one of the two")
    if not (beta > 0 and draws >= 1 and similarity >= 0):
        allowed = "beta > 0, draws >= 1, similarity >= 0"
        raise invalid(option, (beta, draws, similarity), allowed)
    if loser is not None:
        column = require_column(spec, loser, f"{option}.loser")
        if column.shape != tuple(spec.shape):
            raise invalid(f"{option}.loser", column.shape, f"examples, {tuple(spec.shape)}")
    judged = None if reward is None else scored(reward, spec, f"{option}.reward")
    other = networks[teacher]
    needed: list[Callable[[], object]] = [having(networks, [teacher], "label_error")]
    if judged is not None:
        needed += [judged, having(networks, [teacher], "sampler")]

    def pair(params: PyTree, batch: Batch, keys: jax.Array) -> tuple[jax.Array, ...]:
        """(x, y, the probability [B] that x is the better)."""
        if judged is None:
            assert loser is not None
            y = normalise({"image": batch[loser]})["image"]
            return batch["image"], y, jnp.ones(len(y))
        labels = batch["label"]
        drawn = other.method.sampler(**(sample or {})).fn
        x, y = (drawn(params["frozen"][teacher], fold(keys, n), labels) for n in (FIRST, SECOND))
        x = batch["image"] if data else x
        return x, y, jax.nn.sigmoid(judged()(x, labels) - judged()(y, labels))

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, labels = example_keys(jax.random.fold_in(key, PAIRS), batch), batch["label"]
        x, y, better = jax.lax.stop_gradient(pair(params, batch, keys))
        told = jnp.isfinite(better)
        better = jnp.where(told, better, 0.5)
        margin = beta * (ratio(params, x, labels, keys) - ratio(params, y, labels, keys))
        each = better * jax.nn.softplus(-margin) + (1 - better) * jax.nn.softplus(margin)
        value = jnp.where(told, each, 0.0).mean()
        agrees = ((margin > 0) == (better > 0.5)).mean()
        metrics = {"preference": value, "agrees": agrees, "unscored": 1 - told.mean()}
        if similarity:
            own, (more, extra) = base.loss(params, batch, key, extra)
            value, metrics = value + similarity * own, {**more, **metrics, "similarity": own}
        return value, (metrics, extra)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = frozen_with(method, spec, networks, teacher)
    made = retrained(method, needed, learners=learners, frozen=frozen)
    return dataclasses.replace(made, train_flops=None)
