"""All but one: a class becomes its alternative, and nothing else moves, without any data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.quick import quick_jit
from experiments.shared.student_fit import CLASSES, MEANS, PATH, SPEC, STD, exact, trained
from jaxgen.families.diffusion import denoising
from jaxgen.method import Method, TrainState
from jaxgen.training.ema import Averages
from jaxgen.unlearn.forget import forget

PAPER = (
    "All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion "
    "Models"
)
ENTRY = "jaxgen.unlearn.forget.forget"
STEPS, COUNT = 300, 1000


class Exact(nn.Module):
    """The exact eps of four Gaussians, whose means may move: each its own, and all together.

    What is shared is what a network shares: whoever moves it moves every class and their mixture.
    """

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, labels: Any, *, train: bool = False) -> Any:
        """x [B, 2], t [B], labels [B] -> [B, 2]."""
        own = self.param("own", nn.initializers.zeros, MEANS.shape)
        shared = self.param("shared", nn.initializers.zeros, (2,))
        return exact(labels, MEANS + own + shared, MEANS + shared)(None, x, t, ())[0].eps


def model() -> Method:
    """The exact model as a method, whose first parameters say what the data are."""
    rate = optax.cosine_decay_schedule(3e-2, STEPS)
    return denoising(SPEC, Exact(), optax.adam(rate), Averages((1000,)), prediction="eps")


def erased(base: Method, state: TrainState, **options: Any) -> Any:
    """Its parameters after class 0 was forgotten, of samples of a copy alone; state: its first."""
    teacher = SimpleNamespace(method=base, fitting=lambda spec: state.params)
    drawn = dict(solver="euler", steps=8, guidance=1.0)
    method = forget(
        base, spec=SPEC, networks={"teacher": teacher}, classes=(0,), sample=drawn, retain=0.0,
        **options,
    )  # fmt: skip
    return trained(method, state, STEPS, quick_jit).params


@quick_jit
def error(params: Any, label: jax.Array) -> jax.Array:
    """Root mean square error of eps for a label (CLASSES: none), at noised data of all classes."""
    keys = jax.random.split(jax.random.key(3), 4)
    x0 = jnp.asarray(MEANS)[jax.random.randint(keys[0], (2000,), 0, CLASSES)]
    x0 += STD * jax.random.normal(keys[1], x0.shape)
    t, labels = jax.random.uniform(keys[2], (2000,)), jnp.full(2000, label)
    x = PATH.mix(x0, jax.random.normal(keys[3], x0.shape), t)
    found = Exact().apply({"params": params["net"]}, x, t, labels)
    return jnp.sqrt(((found - exact(labels)(None, x, t, ())[0].eps) ** 2).mean())


def checks() -> list[Check]:
    """The erased class's samples, and what is off elsewhere, by three targets."""
    base = model()
    state = quick_jit(base.init)(jax.random.key(0))
    params = erased(base, state, target="guidance", substitute=1, preserve=1.0)
    keys, labels = jax.random.split(jax.random.key(2), COUNT), jnp.zeros(COUNT, jnp.int32)
    assert base.sampler is not None
    x = np.asarray(quick_jit(base.sampler(solver="heun", steps=12).fn)(params, keys, labels))
    # Three standard errors of a mean, and of a deviation, of COUNT samples; Heun's error is less.
    results = [
        below("erased class from its alternative's mean", np.abs(x.mean(0) - MEANS[1]).max(), 0.03),
        below("error of its deviation, relative", np.abs(x.std(0) / STD - 1).max(), 0.095),
    ]
    others = {
        "": params,
        ", nothing preserved": erased(base, state, target="guidance", substitute=1),
        ", led away": erased(base, state, target="negative"),
    }
    for name, found in others.items():
        for what, some in (("no label", [CLASSES]), ("the other labels", [1, 2, 3])):
            off = max(error(found, label) for label in some)
            check = below(f"error of eps for {what}{name}", off, 1e-2)
            results.append(control(check) if name else check)
    return results
