"""Unlearning classes: what the model says for them is drawn to what a frozen copy says instead.

"relabel": to another class, or to no label (Fan et al. 2024, "SalUn"; Kumari et al. 2023).
"negative": away from the class, e(x) - eta (e(x | c) - e(x)) (Gandikota et al. 2023, "Erasing
Concepts from Diffusion Models", eq. 7). The other classes' examples train as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

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
from jaxgen.method.streams import NOISE, TIME, example_keys, fold, normal

PyTree = Any
STREAM = 2**32 - 3
"""Of the step's key: its noise is not the retained examples'."""


def forget(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    classes: tuple[int | str, ...],
    target: Literal["relabel", "negative"] = "relabel",
    substitute: int | str | None = None,
    eta: float = 1.0,
    weight: float = 1.0,
    teacher: str = "teacher",
) -> Method:
    """Forget `classes` (labels or names), keep the rest; for diffusion, whose denoiser is known.

    Examples of a forgotten class are where its answer is changed (the forget data), all others are
    retain data. networks[teacher]: the model as it was; start from it too (`config.start`).
    substitute: the class in its place, None: no label. eta: strength of "negative". weight: of the
    forgetting against the retained loss. Raises UsageError for classes that there are not, and for
    a method without a denoiser.
    """
    if not classes:
        allowed = f"labels from 0 to {spec.num_classes - 1}, or names"
        raise invalid("unlearn.forget.classes", classes, allowed)
    forgotten = jnp.asarray([spec.label(c, "unlearn.forget.classes") for c in classes])
    denoiser = denoiser_factory(method)
    if denoiser is None:
        raise invalid("unlearn.forget", "a method without a denoiser", "diffusion on labels")
    base = only_learner(method, "unlearn.forget")
    other = teacher_of(networks, teacher, "unlearn.forget")
    instead = spec.label(substitute, "unlearn.forget.substitute")

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        labels = batch["label"]
        gone = jnp.isin(labels, forgotten).astype(jnp.float32)
        kept = {**batch, "weight": batch.get("weight", 1.0) * (1 - gone)}
        value, (metrics, extra) = base.loss(params, kept, key, extra)
        keys = example_keys(jax.random.fold_in(key, STREAM), batch)
        ours = denoiser(guidance=1.0)(params, labels)
        scale = -eta if target == "negative" else 1.0
        told = labels if target == "negative" else jnp.full_like(labels, instead)
        theirs = other.method.sampler(guidance=scale).denoiser(params["frozen"][teacher], told)
        t = jax.vmap(jax.random.uniform)(fold(keys, TIME))
        x = ours.path.mix(batch["image"], normal(fold(keys, NOISE), spec.shape), t)
        said, wanted = (d(keys, x, t, d.init(x))[0].v(ours.path, t) for d in (ours, theirs))
        error = ((said - jax.lax.stop_gradient(wanted)) ** 2).reshape(len(labels), -1).mean(1)
        forgetting = (gone * error).mean()
        return value + weight * forgetting, ({**metrics, "forgetting": forgetting}, extra)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = frozen_with(method, spec, networks, teacher)
    return dataclasses.replace(
        retrained(method, learners=learners, frozen=frozen), train_flops=None
    )
