"""The denoisers that guidance may ask a conditional network for, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import UsageError, invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.core.sampler import Branch, unavailable
from jaxgen.method import Spec, never_dropped, no_label

PyTree = Any


def coherent(levels: int, classes: int) -> Callable[[Any], Any]:
    """What a network is told of labels y * levels + c: {"label": y, "coherence": c}.

    y is in [0, classes), c how far it is to be believed; with no label no coherence is told.
    """

    def told(labels: Any) -> Any:
        if isinstance(labels, Mapping):
            return {**labels, **told(labels["label"])}
        y, c = labels // levels, labels % levels
        return {"label": y, "coherence": jnp.where((y < 0) | (y == classes), -1, c)}

    return told


def standard_branches(
    network: Network, spec: Spec, coherence: int, *, guidable: bool
) -> dict[str, Branch]:
    """(params, labels [B]) -> denoiser: "cond", "uncond", "weak", "incoherent", and "by_label".

    coherence: levels of how far labels are believed. guidable: whether the network was trained
    with dropped labels; else what guidance would do without them raises. "labels" are the labels
    alone. Wherever labels are, a mapping of conditions may be (`jaxgen.nn.conditions`).
    """

    def alone(labels: Any) -> Any:
        return labels.get("label") if isinstance(labels, Mapping) else labels

    def with_label(labels: Any, label: Any) -> Any:
        return {**labels, "label": label} if isinstance(labels, Mapping) else label

    def believed(labels: Any, level: int) -> Any:
        """Labels at one level of coherence; "no label" stays what it is."""
        if labels is None or coherence == 1:
            return labels
        if isinstance(labels, Mapping):
            return with_label(labels, believed(alone(labels), level))
        return jnp.where(labels == spec.null_label, labels, labels // coherence * coherence + level)

    def cond(params: PyTree, labels: Any) -> Denoiser:
        return network.denoiser(params and params["net"], believed(labels, coherence - 1))

    def incoherent(params: PyTree, labels: Any) -> Denoiser:
        if coherence == 1:
            return unavailable(
                invalid("guidance", "coherence", "others: this model knows no coherence",
                        "Train with method.coherence=2 or more.")
            )  # fmt: skip
        return network.denoiser(params and params["net"], believed(labels, 0))

    def uncond(params: PyTree, labels: Any) -> Denoiser:
        if not guidable:
            return unavailable(never_dropped("a scale other than 1"))
        null: Any = None if labels is None else no_label(labels, spec.null_label)
        return network.denoiser(params and params["net"], null)

    def weak(params: PyTree, labels: Any) -> Denoiser:
        if params is not None and "weak" not in params:
            return unavailable(
                UsageError('guidance: autoguidance needs params = {"net": ..., "weak": ...}.')
            )
        return network.denoiser(params and params["weak"], believed(labels, coherence - 1))

    def by_label(params: PyTree, labels: Any) -> Any:
        def of(others: jax.Array) -> Denoiser:
            told = believed(with_label(labels, others), coherence - 1)
            return network.denoiser(params["net"], told)

        return of

    return {
        "cond": cond,
        "uncond": uncond,
        "incoherent": incoherent,
        "weak": weak,
        "labels": lambda params, labels: alone(labels),
        "by_label": by_label,
    }
