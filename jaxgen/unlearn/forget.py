"""Unlearning classes: what the model says for them is drawn to what a frozen copy says instead.

"relabel": to another class, or to no label (Fan et al. 2024, "SalUn"; Kumari et al. 2023).
"negative": away from the class, e(x) - eta (e(x | c) - e(x)) (Gandikota et al. 2023, "Erasing
Concepts from Diffusion Models", eq. 7). "guidance": only the class's own part, e(x | c) - e(x),
becomes another class's, or nothing, while `preserve` holds e(x) (Hong et al. 2024, "All but One").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import unknown
from jaxgen.method import Method, Spec
from jaxgen.unlearn.answers import Answer, answering

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
    option = "unlearn.forget"
    if target not in TARGETS:
        raise unknown(f"{option}.target", target, TARGETS)
    instead = spec.label(substitute, f"{option}.substitute")

    def off(ours: Answer, theirs: Answer, labels: jax.Array) -> jax.Array:
        another = jnp.full_like(labels, instead)
        if target == "guidance":
            return ours(1.0) - ours(0.0) - (theirs(1.0, another) - theirs(0.0, labels))
        return ours(1.0) - (theirs(-eta, labels) if target == "negative" else theirs(1.0, another))

    return answering(
        method, option, off, spec=spec, networks=networks, classes=classes, weight=weight,
        preserve=preserve, retain=retain, sample=sample, teacher=teacher,
    )  # fmt: skip
