"""Guidance distillation: a student told w says in one call what guidance says in two."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.student_fit import CLASSES, MEANS, PATH, SPEC, STD, Teacher, exact, trained
from jaxgen.distill.guidance import guided
from jaxgen.distill.student import says, told
from jaxgen.families.diffusion import denoising
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

PAPER = "On Distillation of Guided Diffusion Models"
ENTRY = "jaxgen.distill.guidance.guided"
STEPS, COUNT = 4000, 400


def taught(low: float, high: float) -> Any:
    """w -> root mean square of the student's x0 less exact guidance's, over that of guidance."""
    rate = optax.cosine_decay_schedule(3e-3, STEPS)
    net = MLP(CLASSES, 2, 128, 3, conditions=(("w", "number"),))
    base = denoising(SPEC, net, optax.adam(rate), Averages((5000,)), label_dropout=0.1)
    method = guided(base, spec=SPEC, networks={"teacher": Teacher()}, low=low, high=high)
    state = trained(method, method.init(jax.random.key(0)), STEPS)
    key, labels = jax.random.key(3), jnp.arange(COUNT) % CLASSES
    t = jnp.linspace(0.1, 0.9, COUNT)
    # Where the data are at that time, as in training.
    x0 = jnp.asarray(MEANS)[labels] + STD * jax.random.normal(key, (COUNT, 2))
    x = PATH.mix(x0, jax.random.normal(jax.random.fold_in(key, 1), (COUNT, 2)), t)
    none = jnp.full_like(labels, CLASSES)
    cond, uncond = (exact(y)(None, x, t, ())[0].velocity(PATH, t) for y in (labels, none))
    assert method.sampler is not None and base.sampler is not None
    student = base.sampler(guidance=()).denoiser
    assert student is not None

    def error(w: float) -> float:
        ours = says(student(state.ema["half_life_5000"], told(base, labels, w)), x, t)
        wanted = uncond + w * (cond - uncond)
        off = ours.velocity(PATH, t) - wanted
        return float(np.sqrt((off**2).mean() / (wanted**2).mean()))

    return error


def checks() -> list[Check]:
    """The error at three weights; of a student of the unguided teacher at the two that guide."""
    error, plain, results = taught(1.0, 4.0), taught(1.0, 1.0), []
    for w in (1.0, 2.0, 4.0):
        check = f"relative error of the student, w={w:g}"
        results.append(below(check, error(w), 0.1))
        if w > 1:
            name = f"{check}, of an unguided teacher"
            results.append(control(below(name, plain(w), 0.1)))
    return results
