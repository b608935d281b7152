"""Tuning by rewards of the data: examples are seen as often as they are worth it.

Reward-weighted regression (Peters & Schaal 2007) and filtering, which Korbak et al., "Pretraining
Language Models with Human Preferences" (2023, section 2), compare with telling the model the reward
(`tune.told`). For every family: a batch is drawn again from itself before the method's own loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.config import Later
from jaxgen.errors import invalid
from jaxgen.method import Batch, Method, Spec, TrainState, require_column, retrained, training_of
from jaxgen.steer.resample import effective_size, systematic
from jaxgen.tune.rewards import scored

PyTree = Any
CHOSEN = 2**32 - 12
"""Of a step's key: which examples of the batch are seen."""


def weighted(
    method: Method,
    *,
    spec: Spec,
    column: str | None = None,
    reward: Later | Any = None,
    beta: float | None = 1.0,
    least: float | None = None,
) -> Method:
    """See an example in proportion to exp(R / beta), and none whose R is below `least`.

    R is a column of the data, a number of each example, or a reward of its image and label: a
    section of `jaxgen.frozen.rewards`, or a function. The optimum is p(x | c) exp(R / beta) / Z, p
    the data's law, up to what a batch is too small for: weights are relative to the batch's. beta:
    None for filtering alone. An R that is not finite is not seen; `effective` is the share of the
    batch that (sum w)^2 / sum w^2 counts, and where no example is left all are seen. Raises
    UsageError: not one of column and reward, no such column, beta not above 0.
    """
    option = "tune.weighted.weighted"
    if (column is None) == (reward is None):
        raise invalid(option, {"column": column, "reward": reward}, "one of the two")
    if beta is not None and not beta > 0:
        raise invalid(f"{option}.beta", beta, "beta > 0, or None for filtering alone")
    if column is not None and require_column(spec, column, f"{option}.column").shape != ():
        raise invalid(f"{option}.column", spec.columns[column].shape, "a number of each example")
    judged = None if reward is None else scored(reward, spec, f"{option}.reward")
    before = training_of(method, option).prepare

    def prepare(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        if judged is None:
            assert column is not None
            value = batch[column].astype(jnp.float32)
        else:
            value = judged()(batch["image"], batch["label"]).astype(jnp.float32)
        seen = jnp.isfinite(value) if least is None else jnp.isfinite(value) & (value >= least)
        log = jnp.where(seen, 0.0 if beta is None else value / beta, -jnp.inf)
        order_key, own = jax.random.split(jax.random.fold_in(key, CHOSEN))
        # In no order that the data have: even positions would see a pattern in it.
        order = jax.random.permutation(order_key, len(log))
        rows = order[systematic(own, log[order])]
        kept = {k: a for k, a in batch.items() if k in ("index", "seen", "microbatch")}
        batch = {**{k: a[rows] for k, a in batch.items() if k not in kept}, **kept}
        metrics = {"effective": effective_size(log) / len(rows)}
        if before is not None:
            state, batch, more = before(state, batch, key, frozen)
            metrics |= more
        return state, batch, metrics

    needed = () if judged is None else (judged,)
    return dataclasses.replace(retrained(method, needed, prepare=prepare), separable=False)
