"""Consistency: a network that says from any point of a path where the path ends.

Song et al., "Consistency Models" (2023); in continuous time, Lu & Song, "Simplifying, Stabilizing
and Scaling Continuous-Time Consistency Models" (2025). f(x_t, t) = x0 is the same all along a
trajectory of the probability flow, so that d f / dt = 0 there: each step moves f against the
derivative that it has. Along the teacher's flow (distillation), or, as the mean over noise leads to
the same optimum, along the line of each x0 and eps (training). On the linear path this is MeanFlow
(Geng et al. 2025) from any time to 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.distill.student import Asked, declares, denoisers, renoising, says, student
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import T_MIN, Path, expand
from jaxgen.families.diffusion.core.prediction import from_x0, to_prediction
from jaxgen.method import Method, Spec, frozen_with, teacher_of

PyTree = Any


def consistency(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    guidance: float = 1.0,
    steps: int | None = None,
    norm: float = 0.1,
    teacher: str | None = "teacher",
) -> Method:
    """Train the model to draw in `sample.steps` calls: from noise, noised anew in between.

    Start from a trained model (`config.start`), of prediction "velocity", "v" or "edm", which
    say at t=0 what they were given. teacher: the name in `networks` of whose flow is followed, at
    `guidance`, or None: no teacher. steps: the derivative is a difference over a time of 1 / steps;
    None: exact, for networks with time_scale=1, whose own derivative in time is tame. norm: c of
    g / (|g| + c), g the derivative's root mean square, which bounds a step (0.1 in Lu & Song 2025).
    Raises UsageError: no such network, guidance without one, values out of range, a network of
    another prediction or time scale, one that is told a weight.
    """
    network = denoisers(method)(guidance=())(None, None).network
    if network.kind not in ("velocity", "v", "edm"):
        raise invalid("config.method.prediction", network.kind, "'velocity', 'v' or 'edm'")
    if norm <= 0 or (teacher is None and guidance != 1.0) or (steps is not None and steps < 2):
        allowed = "norm > 0, steps >= 2 or None; guidance 1 without a teacher"
        raise invalid("distill.consistency", (norm, steps, guidance), allowed)
    scale = getattr(network.model, "time_scale", 1.0)
    if steps is None and scale != 1:
        allowed = "config.model.time_scale=1, or a difference, such as steps=64"
        raise invalid("distill.consistency.steps", f"None, with time_scale {scale:g}", allowed)
    if declares(method):
        raise invalid("config.model.conditions", "a weight, w", "none: `guidance` is the teacher's")
    other = None if teacher is None else teacher_of(networks, teacher, "distill.consistency")

    def target(params: PyTree, asked: Asked, path: Path) -> jax.Array:
        x, t, velocity = asked.x, asked.t, asked.velocity
        if other is not None:
            held = params["frozen"][teacher]
            theirs = other.method.sampler(guidance=guidance).denoiser(held, asked.labels)
            velocity = says(theirs, x, t).velocity(path, t)
        ours = denoisers(method)(guidance=())(params, asked.told)
        ends = lambda x, t: says(ours, x, t).x0
        if steps is None:
            x0, slope = jax.jvp(ends, (x, t), (velocity, jnp.ones_like(t)))
        else:
            before = jnp.maximum(t - 1 / steps, T_MIN)
            there = to_prediction("velocity", velocity, x, t, path).mix(path, before)
            x0 = ends(x, t)
            slope = (x0 - ends(there, before)) / expand(jnp.maximum(t - before, T_MIN), x)
        size = jnp.sqrt((slope.reshape(len(t), -1) ** 2).mean(1))
        # A step of t / (|g| + c) back along the path.
        moved = x0 - expand(t / (size + norm), x) * slope
        return from_x0(moved, x, t, path).v(path, t)

    names = () if teacher is None else (teacher,)
    frozen = frozen_with(method, spec, networks, *names)
    made = student(method, spec, target, (1.0, 1.0), frozen=frozen)
    return dataclasses.replace(
        made, sampler=renoising(method, None), label_error=None, log_prob=None, likelihood=None
    )
