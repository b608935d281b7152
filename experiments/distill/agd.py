"""Adapter guidance distillation: low-rank changes of a frozen model say what its guidance says."""

from __future__ import annotations

from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.student_fit import CLASSES, PATH, SPEC, trained
from experiments.shared.tabular import Trained
from jaxgen.distill.guidance import guided
from jaxgen.distill.student import denoisers, says, told
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.method import with_frozen
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from jaxgen.tune.lora import lora
from jaxgen.tune.only import only

PAPER = "Efficient Distillation of Classifier-Free Guidance Using Adapters"
ENTRY = "jaxgen.distill.guidance.guided"
STEPS, COUNT, GRID, WEIGHT = 3000, 512, 8, 4.0


def network(*conditions: tuple[str, str]) -> Any:
    """The denoiser, which may be told more."""
    rate = optax.cosine_decay_schedule(3e-3, STEPS)
    net = MLP(CLASSES, 2, 64, 3, conditions=conditions)
    return denoising(SPEC, net, optax.adam(rate), Averages((5000,)), label_dropout=0.2)


def base() -> Trained:
    """A denoiser, trained on the toy."""
    method = network()
    state = trained(method, method.init(jax.random.key(0)), STEPS)
    held = Trained(method)
    held.params = {"net": state.ema["half_life_5000"]["net"]}
    return held


def errors(teacher: Trained, trajectory: int) -> tuple[float, bool]:
    """(The adapted model's error of velocity along guided trajectories, relative; base untouched).

    trajectory: as `guided` has it.
    """
    options = dict(low=1.0, high=WEIGHT, trajectory=trajectory)
    plain = network(("w", "number"))
    taught = guided(plain, spec=SPEC, networks={"teacher": teacher}, **options)
    adapted = only(lora(taught, rank=8), match=r"\bw\b")
    state = adapted.init(jax.random.key(0))
    flat = trees.flatten_dict(state.params["net"]) | trees.flatten_dict(teacher.params["net"])
    begun = trees.unflatten_dict(flat)
    state = trained(adapted, state.replace(params={**state.params, "net": begun}), STEPS)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params["net"], begun)
    averaged = {**state.params, **state.ema["half_life_5000"]}
    ours = adapted.plain(with_frozen(adapted, averaged))
    student = denoisers(plain)(guidance=())
    of = denoisers(teacher.method)(guidance=())
    labels = jnp.arange(COUNT) % CLASSES
    x = jax.random.normal(jax.random.key(5), (COUNT, 2))
    off, size = 0.0, 0.0
    for n in range(GRID):
        t = jnp.full(COUNT, 1 - n / GRID)
        none = jnp.full_like(labels, CLASSES)
        cond, uncond = (says(of(teacher.params, y), x, t).v(PATH, t) for y in (labels, none))
        wanted = uncond + WEIGHT * (cond - uncond)
        found = says(student(ours, told(plain, labels, WEIGHT)), x, t).v(PATH, t)
        off, size = off + ((found - wanted) ** 2).mean(), size + (wanted**2).mean()
        x = to_prediction("v", wanted, x, t, PATH).mix(PATH, t - 1 / GRID)
    return float(np.sqrt(off / size)), all(jax.tree.leaves(same))


def checks() -> list[Check]:
    """The error of adapters taught on trajectories; of others, taught on noised data; of none."""
    teacher = base()
    name = f"relative error on guided trajectories, w={WEIGHT:g}"
    on_them, same = errors(teacher, GRID)
    on_data, _ = errors(teacher, 0)
    return [
        below(name, on_them, 0.02),
        below("arrays of the base that changed", float(not same), 0.0),
        control(below(f"{name}, taught on noised data", on_data, 0.02)),
    ]
