"""Sampling at the best: a model that was told how good each example is, told the highest.

Conditional training (Korbak et al., "Pretraining Language Models with Human Preferences", 2023) and
several rewards as conditions (Gu et al., "Multi-Reward as Condition for Instruction-based Image
Editing", 2024). How good an example is is a part of its label (`data.binned`), or columns that the
network declares in `conditions`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Method, Sampler, Spec

PyTree = Any


def told(
    method: Method,
    *,
    spec: Spec,
    levels: int = 1,
    values: Mapping[str, float] | None = None,
) -> Method:
    """Samplers asked for a label are told the best of it; training is what it was.

    levels: labels are y * levels + c, c = levels - 1 the best, and whatever c one asks for, that is
    drawn; 1 for labels of one part. values: what the network is told of other conditions, by name,
    a number for each. "No label" stays: it is told nothing. Raises UsageError: levels that do not
    divide the classes, neither levels nor values, no sampler.
    """
    draw, option = method.sampler, "tune.told.told"
    if draw is None:
        raise invalid(option, "a method without a sampler", "one that one can sample")
    if levels < 1 or spec.num_classes % levels:
        allowed = f"a divisor of the {spec.num_classes} classes"
        raise invalid(f"{option}.levels", levels, allowed)
    if levels == 1 and not values:
        raise invalid(option, "levels 1 and no values", "levels > 1 or values")
    known = draw

    def best(labels: jax.Array) -> Any:
        labels = jnp.asarray(labels)
        top = labels // levels * levels + levels - 1
        labels = jnp.where(labels == spec.null_label, labels, top)
        if not values:
            return labels
        each = {n: jnp.full(labels.shape, v, jnp.float32) for n, v in values.items()}
        return {"label": labels, **each}

    def first(fn: Callable[..., Any] | None, place: int) -> Any:
        """fn with the best in the place of the labels that are its argument number `place`."""
        if fn is None:
            return None
        inner = fn

        def call(*args: Any) -> Any:
            labels = args[place]
            instead = labels if labels is None else best(labels)
            return inner(*args[:place], instead, *args[place + 1 :])

        return call

    @functools.wraps(known)
    def sampler(**options: Any) -> Sampler:
        made = known(**options)
        return dataclasses.replace(
            made,
            fn=first(made.fn, 2),
            chain=first(made.chain, 1),
            denoiser=first(made.denoiser, 1),
            by_weight=first(made.by_weight, 2),
            log_probs=first(made.log_probs, 2),
        )

    return dataclasses.replace(method, sampler=sampler)
