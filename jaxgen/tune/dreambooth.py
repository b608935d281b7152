"""DreamBooth: a new class from a few images, the classes that it came from kept as they were.

Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation"
(2023), eq. 2: the method's loss on the images, and the same loss, with its own weight and noise, on
samples that a frozen copy draws for the parent class ("class-specific prior preservation"). Here
the rare identifier is a label of its own, which begins as its parent's (`config.start.parents`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.data.classes import matched
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    having,
    only_learner,
    retrained,
    teacher_of,
    training_of,
)
from jaxgen.method.streams import example_keys

PyTree = Any
DRAWS, PRIOR = 2**32 - 16, 2**32 - 17
"""Of a step's key: what the copy's samples are drawn from, and what the loss on them draws."""
PLACED = ("index", "seen", "microbatch")


def dreambooth(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    parents: Mapping[str, int | str],
    weight: float = 1.0,
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """Train on the data as the method does, and with `weight` on the frozen copy's samples.

    Each example has beside it a sample of networks[teacher] for its class's parent, an old class's
    own, of the same label; columns of the data say nothing of it. For every family with one loss.

    parents: for each class that the copy does not know, by name, one that it does. sample: options
    of the copy's sampler (a `sample` section: as few calls as will do, since each step draws).
    networks[teacher]: the model as it was; start from it too (`config.start`, with the same
    parents). Labels dropped (`method.label_dropout`) teach both laws to "no label". Raises
    UsageError: no such network, one without a sampler, a class without a parent.
    """
    base = only_learner(method, "tune.dreambooth")
    other = teacher_of(networks, teacher, "tune.dreambooth")
    if not weight >= 0:
        raise invalid("tune.dreambooth.weight", weight, "weight >= 0")
    parent = list(range(spec.num_classes))
    for pair in parents.items():
        child, own = (spec.label(word, "tune.dreambooth.parents") for word in pair)
        parent[child] = own
    here = jnp.asarray(parent)

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        value, (metrics, extra) = base.loss(params, batch, key, extra)
        keys = example_keys(jax.random.fold_in(key, DRAWS), batch)
        labels = here[batch["label"]]
        draw = other.method.sampler(**(sample or {})).fn
        image = draw(params["frozen"][teacher], keys, theirs(other, spec, parent)[labels])
        placed = {name: batch[name] for name in PLACED}
        drawn = {**placed, "image": jax.lax.stop_gradient(image), "label": labels}
        prior, (_, extra) = base.loss(params, drawn, jax.random.fold_in(key, PRIOR), extra)
        return value + weight * prior, ({**metrics, "prior": prior}, extra)

    def held() -> PyTree:
        known = other.method.spec
        fewer = dict(num_classes=known.num_classes, classes=known.classes)
        return other.fitting(dataclasses.replace(spec, **fewer))

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = {**training_of(method, "tune.dreambooth").frozen, teacher: held}
    needed = (having(networks, [teacher], "sampler"), lambda: theirs(other, spec, parent))
    made = retrained(method, needed, learners=learners, frozen=frozen)
    return dataclasses.replace(made, train_flops=None)


def theirs(other: Any, spec: Spec, parent: list[int]) -> jax.Array:
    """The copy's label [C] of each class here whose parent it is, by name; of the others, 0.

    Raises UsageError where the copy lacks a parent.
    """
    names = [spec.class_names[label] for label in sorted(set(parent))]
    places = matched(
        names,
        other.method.spec.class_names,
        option="tune.dreambooth.parents",
        whose="classes of the frozen copy",
        fewer=True,
    )
    return jnp.zeros(spec.num_classes, jnp.int32).at[jnp.asarray(sorted(set(parent)))].set(places)
