"""Unlearning classes: what the model says for them is drawn to what a frozen copy says instead.

"relabel": to another class, or to no label (Fan et al. 2024, "SalUn"; Kumari et al. 2023).
"negative": away from the class, e(x) - eta (e(x | c) - e(x)) (Gandikota et al. 2023, "Erasing
Concepts from Diffusion Models", eq. 7). "guidance": only the class's own part, e(x | c) - e(x),
becomes another class's, or nothing, while `preserve` holds e(x) (Hong et al. 2024, "All but One").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    denoiser_factory,
    frozen_with,
    only_learner,
    retrained,
    teacher_of,
)
from jaxgen.method.streams import LABEL, NOISE, TIME, example_keys, fold, normal

PyTree = Any
STREAM, DRAWN = 2**32 - 3, 2**32 - 8
"""Of the step's key: its noise is not the retained examples'; what the copy's samples are of."""
TARGETS = ("relabel", "negative", "guidance")


def forget(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    classes: tuple[int | str, ...],
    target: Literal["relabel", "negative", "guidance"] = "relabel",
    substitute: int | str | None = None,
    eta: float = 1.0,
    weight: float = 1.0,
    preserve: float = 0.0,
    retain: float = 1.0,
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """Forget `classes` (labels or names), keep the rest; for diffusion, whose denoiser is known.

    Examples of a forgotten class are where its answer is changed (the forget data), all others are
    retain data. networks[teacher]: the model as it was; start from it too (`config.start`).
    substitute: the class in its place, None: no label. eta: strength of "negative". weight: of the
    forgetting. preserve: of the square by which the answer without a label leaves the copy's.
    retain: of the retained examples' own loss, whose rows without a label teach the law of the
    rest, against `preserve`. sample: options of the copy's sampler, which then draws the forget
    data at each step ({}: as it does by itself); None: the batch's. With retain=0 too no data of
    any class are asked for. Raises UsageError for classes that there are not, weights below 0, and
    a method without a denoiser.
    """
    if not classes:
        allowed = f"labels from 0 to {spec.num_classes - 1}, or names"
        raise invalid("unlearn.forget.classes", classes, allowed)
    if target not in TARGETS:
        raise unknown("unlearn.forget.target", target, TARGETS)
    if min(weight, preserve, retain) < 0:
        raise invalid("unlearn.forget", (weight, preserve, retain), "weight, preserve, retain >= 0")
    forgotten = jnp.asarray([spec.label(c, "unlearn.forget.classes") for c in classes])
    denoiser = denoiser_factory(method)
    if denoiser is None:
        raise invalid("unlearn.forget", "a method without a denoiser", "diffusion on labels")
    base = only_learner(method, "unlearn.forget")
    other = teacher_of(networks, teacher, "unlearn.forget")
    instead = spec.label(substitute, "unlearn.forget.substitute")
    path = denoiser(guidance=1.0)(None, None).path

    def examples(held: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """(x0, labels, which of them are forget data)."""
        if sample is None:
            return batch["image"], batch["label"], jnp.isin(batch["label"], forgotten)
        keys = example_keys(jax.random.fold_in(key, DRAWN), batch)
        which = lambda k: jax.random.randint(k, (), 0, len(forgotten))
        labels = forgotten[jax.vmap(which)(fold(keys, LABEL))]
        x0 = other.method.sampler(**sample).fn(held, fold(keys, NOISE), labels)
        return jax.lax.stop_gradient(x0), labels, jnp.ones(labels.shape, bool)

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        rest = 1.0 - jnp.isin(batch["label"], forgotten)
        kept = {**batch, "weight": batch.get("weight", 1.0) * rest}
        value, (metrics, extra) = base.loss(params, kept, key, extra)
        held = params["frozen"][teacher]
        x0, labels, gone = examples(held, batch, key)
        keys = example_keys(jax.random.fold_in(key, STREAM), batch)
        t = jax.vmap(jax.random.uniform)(fold(keys, TIME))
        x = path.mix(x0, normal(fold(keys, NOISE), spec.shape), t)

        def ours(guidance: float) -> jax.Array:
            it = denoiser(guidance=guidance)(params, labels)
            return it(keys, x, t, it.init(x))[0].v(path, t)

        def theirs(guidance: float, told: jax.Array) -> jax.Array:
            it = other.method.sampler(guidance=guidance).denoiser(held, told)
            return jax.lax.stop_gradient(it(keys, x, t, it.init(x))[0].v(path, t))

        another = jnp.full_like(labels, instead)
        if target == "guidance":
            off = ours(1.0) - ours(0.0) - (theirs(1.0, another) - theirs(0.0, labels))
        elif target == "negative":
            off = ours(1.0) - theirs(-eta, labels)
        else:
            off = ours(1.0) - theirs(1.0, another)
        forgetting = (gone * _square(off)).mean()
        value, metrics = retain * value + weight * forgetting, {**metrics, "forgetting": forgetting}
        if preserve:
            metrics["drift"] = _square(ours(0.0) - theirs(0.0, labels)).mean()
            value += preserve * metrics["drift"]
        return value, (metrics, extra)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = frozen_with(method, spec, networks, teacher)
    return dataclasses.replace(
        retrained(method, learners=learners, frozen=frozen), train_flops=None
    )


def _square(off: jax.Array) -> jax.Array:
    """Mean square [B] of [B, ...]."""
    return (off**2).reshape(len(off), -1).mean(1)
