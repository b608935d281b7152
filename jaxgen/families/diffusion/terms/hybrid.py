"""LiT's hybrid distillation: a student is drawn to a frozen teacher's noise and variance.

Wang et al., "LiT: Delving into a Simplified Linear Diffusion Transformer for Image Generation"
(2025), section 3.3.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term, example_mean
from jaxgen.method import Spec, teacher_of


def hybrid(
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    noise: float = 0.5,
    variance: float = 0.05,
    teacher: str = "teacher",
) -> Term:
    """noise |eps_T - eps_S|^2 + variance |v_T - v_S|^2, means over an example's elements.

    eps, and the logits v of the reverse variance where both have learnt one, of networks[teacher]
    and of the student at the same noised batch, time and condition. Raises UsageError: no such
    network, weights below 0.
    """
    if noise < 0 or variance < 0:
        raise invalid("method.terms.hybrid", (noise, variance), "noise >= 0, variance >= 0")
    other = teacher_of(networks, teacher, "method.terms.hybrid")

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        net = noised.network
        asked = other.method.sampler(guidance=1.0).denoiser(frozen, noised.condition)
        goal = asked(noised.keys, noised.x, noised.t, asked.init(noised.x))[0]
        goal = jax.lax.stop_gradient(goal)
        own = to_prediction(
            net.kind, noised.output, noised.x, noised.t, net.path,
            sigma_data=net.sigma_data, variance=noised.variance,
        )  # fmt: skip
        value = noise * example_mean((goal.eps - own.eps) ** 2)
        if goal.variance is None or own.variance is None:
            return value
        return value + variance * example_mean((goal.variance - own.variance) ** 2)

    return Term(name="hybrid", of=of, frozen=functools.partial(other.fitting, spec))
