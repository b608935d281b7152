"""Distilling a guided sampler: one call in the place of two, then half the steps, and half again.

Meng et al., "On Distillation of Guided Diffusion Models" (2023). `guided` (their stage 1): the
student is told the weight w and says what the teacher says with guidance w; w here is theirs plus 1
(1 is the conditional model). `progressive` (stage 2; Salimans & Ho 2022): one DDIM step of the
student learns two of its teacher, which is the student as it was before the number was halved.

A model that is to be told the weight declares it: `model.conditions=(("w", "number"),)`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.distill.student import Asked, declares, denoisers, says, student, visited
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.prediction import from_x0
from jaxgen.method import Batch, Method, Spec, TrainState, frozen_with, teacher_of

PyTree = Any


def guided(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    low: float = 1.0,
    high: float = 4.0,
    trajectory: int = 0,
) -> Method:
    """Stage 1: a student of networks["teacher"], guided by weights uniform in [low, high].

    Start from the teacher, too (`config.start`). `sample.guidance` is then the weight that the
    student is told, at one call a step. trajectory: at states of the guided teacher's own DDIM
    trajectories of so many steps, in the place of noised data (0), where guidance leads elsewhere
    (Jensen & Sadat 2025, "Efficient Distillation of Classifier-Free Guidance using Adapters"; with
    `tune.lora` after this wrap as the adapters, and `tune.only` for what is told w).
    Raises UsageError: no teacher, a model without "w".
    """
    other = teacher_of(networks, "teacher", "distill.guidance.guided")
    if low > high or trajectory < 0:
        raise invalid("distill.guidance", (low, high, trajectory), "low <= high, trajectory >= 0")
    if not declares(method):
        raise invalid("config.model.conditions", "no weight", '(("w", "number"),) among others')
    path = functools.cache(lambda: denoisers(other.method)(guidance=())(None, None).path)

    def guided_v(params: PyTree, asked: Asked, path: Path) -> jax.Array:
        held, of = params["frozen"]["teacher"], denoisers(other.method)
        cond, uncond = (
            says(of(guidance=g)(held, asked.labels), asked.x, asked.t).v(path, asked.t)
            for g in (1.0, 0.0)
        )
        return uncond + expand(asked.w, cond) * (cond - uncond)

    def states(params: PyTree, asked: Asked, keys: jax.Array) -> Asked:
        return visited(functools.partial(guided_v, params), asked, keys, path(), trajectory)

    frozen = frozen_with(method, spec, networks, "teacher")
    at = states if trajectory else None
    return student(method, spec, guided_v, (low, high), states=at, frozen=frozen)


def progressive(
    method: Method,
    *,
    spec: Spec,
    low: float = 1.0,
    high: float = 4.0,
    steps: int = 16,
    last: int = 1,
    images: int = 100_000,
) -> Method:
    """Stage 2: from `steps` DDIM steps to half of them, again every `images` images, to `last`.

    Start from the run of stage 1, or from any: a model without "w" is told no weight. Sample with
    solver="ddim" at as many steps. Raises UsageError unless steps / last is a power of two.
    """
    halvings = (steps // max(last, 1)).bit_length() - 1
    if last < 1 or halvings < 1 or last * 2**halvings != steps or images < 1:
        raise invalid("distill.guidance", (steps, last, images), "steps = last 2^k, k >= 1")

    def phase(seen: jax.Array) -> jax.Array:
        return jnp.clip(jnp.floor(seen / images), 0, halvings - 1)

    def target(params: PyTree, asked: Asked, path: Path) -> jax.Array:
        (x, t, *_, n, condition), teacher = asked, {**params, "net": params["teacher"]}
        assert n is not None
        z, middle, end = x, t - 0.5 / n, t - 1 / n
        for begin, following in ((t, middle), (middle, end)):
            denoiser = denoisers(method)(guidance=())(teacher, condition)
            z = says(denoiser, z, begin).mix(path, following)
        ratio = path.sigma(end) / path.sigma(t)
        x0 = (z - expand(ratio, x) * x) / expand(path.alpha(end) - ratio * path.alpha(t), x)
        return from_x0(x0, x, t, path).v(path, t)

    def taught(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        """Where a phase begins the teacher becomes the student as it is."""
        seen, size = batch["seen"][0], batch["label"].shape[0]
        begins = (seen == 0) | (phase(seen) != phase(seen - size))
        new, old = state.params["net"], state.extra["teacher"]
        held = jax.tree.map(lambda a, b: jnp.where(begins, a, b), new, old)
        return state.replace(extra={**state.extra, "teacher": held}), batch, {}

    def fresh(key: jax.Array) -> Any:
        params, extra = method.training.fresh(key)
        return params, {**extra, "teacher": jax.tree.map(jnp.copy, params["net"])}

    count = lambda seen: steps / 2 ** (phase(seen) + 1)
    return student(method, spec, target, (low, high), count=count, prepare=taught, fresh=fresh)
