"""Changing what a denoiser says for some classes, against what a frozen copy of it says."""

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
Answer = Callable[..., jax.Array]


def answering(
    method: Method,
    option: str,
    off: Callable[[Answer, Answer, jax.Array], jax.Array],
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    classes: tuple[int | str, ...],
    weight: float,
    preserve: float,
    retain: float,
    sample: Mapping[str, Any] | None,
    teacher: str,
) -> Method:
    """The method whose answers for `classes` lose the square of `off`, in v = alpha eps - sigma x0.

    off(ours, theirs, labels [B]) -> [B, ...], of ours(guidance), the model's answer for these
    labels, and theirs(guidance, labels), the copy's, held. The rest as `unlearn.forget`'s.
    """
    if not classes:
        allowed = f"labels from 0 to {spec.num_classes - 1}, or names"
        raise invalid(f"{option}.classes", classes, allowed)
    if min(weight, preserve, retain) < 0:
        raise invalid(option, (weight, preserve, retain), "weight, preserve, retain >= 0")
    forgotten = jnp.asarray([spec.label(c, f"{option}.classes") for c in classes])
    denoiser = denoiser_factory(method)
    if denoiser is None:
        raise invalid(option, "a method without a denoiser", "diffusion on labels")
    base, other = only_learner(method, option), teacher_of(networks, teacher, option)
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

        forgetting = (gone * _square(off(ours, theirs, labels))).mean()
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
