"""Distillation from models that one can only ask for samples: which to ask, and for what.

Zhao et al., "EvolveDirector: Approaching Advanced Text-to-Image Generation with Large
Vision-Language Models" (2024): a judge compares student and teachers class by class, and the pool
of what is asked follows. Classes in which the student is behind are asked for more often the more
it is behind (their "expand"), those that it has mastered no more ("delete"), and a share of the
questions is of any class ("mutate"); of several teachers the one is asked that does best there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import mesh
from jaxgen.config import Later
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    TrainState,
    fold,
    frozen_with,
    having,
    only_learner,
    retrained,
    teacher_of,
    training_of,
    with_frozen,
)
from jaxgen.method.streams import LABEL, NOISE, OTHER, TIME, example_keys
from jaxgen.tune.rewards import scored

PyTree = Any
ASKED, TRIED = 2**32 - 18, 2**32 - 19
"""Of a step's key: what teachers are asked, and what the student draws to be compared."""


def pool(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    reward: Later | Any,
    teachers: Sequence[str] = ("teacher",),
    margin: float = 0.05,
    explore: float = 0.1,
    memory: float = 0.98,
    sample: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Method:
    """Train by the method's own loss on samples of `networks[teachers]`, of chosen classes.

    No data and no parameters of a teacher are looked at, but for drawing. reward: the judge, a
    section that builds fn(x, labels) -> [B] (`jaxgen.frozen.rewards`), or such a function. Means of
    what it says of each teacher and of the student in each class are kept in the state, sums with
    `memory` of the step before. A class is asked for in proportion to max(gap - margin, 0), gap
    being the best teacher's mean less the student's, but for a share `explore` of the batch, which
    is of any class; there any teacher is judged, while the student learns from the best throughout.
    sample, own: options of the teachers' samplers and of the student's. Each step every teacher and
    the student draw a batch. Metrics: `behind`, the mean gap, and `mastered`, the share of classes
    within the margin. Raises UsageError: no such network or sampler, values out of range.
    """
    option = "distill.pool"
    if not (margin >= 0 and 0 < explore <= 1 and 0 < memory < 1):
        allowed = "margin >= 0, 0 < explore <= 1, 0 < memory < 1"
        raise invalid(option, (margin, explore, memory), allowed)
    if not teachers:
        raise invalid(f"{option}.teachers", teachers, "one name of config.networks or more")
    others = [teacher_of(networks, name, option) for name in teachers]
    draw = method.sampler
    if draw is None:
        raise invalid(option, "a model without a sampler", "a model that one can sample")
    judged = scored(reward, spec, f"{option}.reward")
    base, training = only_learner(method, option), training_of(method, option)
    rows, classes = len(teachers), spec.num_classes

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        zeros = jnp.zeros((rows + 1, classes))
        return params, {"method": extra, "pool": {"sums": zeros, "counts": zeros}}

    def prepare(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        held = state.extra["pool"]
        best, gap = standing(held["sums"], held["counts"])
        wanted, even = jnp.maximum(gap - margin, 0), jnp.full(classes, 1 / classes)
        law = jnp.where(wanted.sum() > 0, wanted / jnp.maximum(wanted.sum(), 1e-12), even)
        keys = example_keys(jax.random.fold_in(key, ASKED), batch)
        explores = jax.vmap(jax.random.uniform)(fold(keys, OTHER)) < explore
        logits = jnp.log(jnp.where(explores[:, None], even, law))
        labels = jax.vmap(jax.random.categorical)(fold(keys, LABEL), logits)
        anyone = jax.vmap(lambda k: jax.random.randint(k, (), 0, rows))(fold(keys, TIME))
        whose = jnp.where(explores, anyone, best[labels])
        drawn = [
            other.method.sampler(**(sample or {})).fn(frozen[name], fold(keys, NOISE), labels)
            for name, other in zip(teachers, others, strict=True)
        ]
        by = jax.vmap(lambda number, *rows: jnp.stack(rows)[number])
        image, shown = (by(number, *drawn) for number in (best[labels], whose))
        tries = example_keys(jax.random.fold_in(key, TRIED), batch)
        student = with_frozen(method, {**state.params, "frozen": frozen})
        ours = draw(**(own or {})).fn(student, tries, labels)
        held = remembered(
            held, (judged()(shown, labels), judged()(ours, labels)), labels, whose, memory
        )
        extra, made = state.extra["method"], {**batch, "image": image, "label": labels}
        metrics = {"behind": gap.mean(), "mastered": (gap <= margin).mean()}
        if training.prepare is not None:
            inner = state.replace(extra=extra)
            state, made, more = training.prepare(inner, made, key, frozen)
            extra, metrics = state.extra, metrics | more
        return state.replace(extra={"method": extra, "pool": held}), made, metrics

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        value, (metrics, inner) = base.loss(params, batch, key, extra["method"])
        return value, (metrics, {**extra, "method": inner})

    def after(params: PyTree, extra: PyTree, metrics: Any) -> Any:
        assert base.after is not None
        params, inner, metrics = base.after(params, extra["method"], metrics)
        return params, {**extra, "method": inner}, metrics

    changed = None if base.after is None else after
    made = retrained(
        method,
        (judged, having(networks, teachers, "sampler")),
        learners={"net": dataclasses.replace(base, loss=loss, after=changed)},
        fresh=fresh,
        prepare=prepare,
        frozen=frozen_with(method, spec, networks, *teachers),
        started=_started(training.started),
    )
    return dataclasses.replace(made, separable=False, train_flops=None)


def standing(sums: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the best teacher [C], how far the student is behind it [C]) of sums and counts [T + 1, C].

    The last row is the student's. Nobody's mean is known before a sample was judged: a teacher is
    then not the best, and a gap 0.
    """
    means = jnp.where(counts > 0, sums / jnp.maximum(counts, 1e-12), -jnp.inf)
    best = means[:-1].max(0)
    known = jnp.isfinite(best) & jnp.isfinite(means[-1])
    return means[:-1].argmax(0), jnp.where(known, best - means[-1], 0.0)


def remembered(
    held: PyTree, said: Any, labels: jax.Array, whose: jax.Array, memory: float
) -> PyTree:
    """Sums and counts [T + 1, C] with a batch's rewards [B] added: of teachers, of the student."""
    rows, classes = held["sums"].shape[0] - 1, held["sums"].shape[1]
    who = jnp.concatenate([jax.nn.one_hot(whose, rows), jnp.ones((len(labels), 1))], 1)
    value = jnp.concatenate([jnp.broadcast_to(said[0][:, None], (len(labels), rows)),
                             said[1][:, None]], 1)  # fmt: skip
    finite, which = jnp.isfinite(value), jax.nn.one_hot(labels, classes)
    counted = jnp.where(finite, who, 0)
    new = {
        "sums": (counted * jnp.where(finite, value, 0)).T @ which,
        "counts": counted.T @ which,
    }
    new = mesh.mean(new)
    present = new["counts"] > 0
    return {k: jnp.where(present, memory * a + new[k], a) for k, a in held.items()}


def _started(known: Any) -> Any:
    """What the method does where its parameters came from another run, on its part of the state."""
    if known is None:
        return None

    def started(state: TrainState) -> TrainState:
        inner = known(state.replace(extra=state.extra["method"]))
        return inner.replace(extra={**state.extra, "method": inner.extra})

    return started
