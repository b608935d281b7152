"""CCM: a frozen one-step consistency model, told where to draw by a branch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.quick import quick_jit
from jaxgen.distill.consistency import consistency
from jaxgen.families.diffusion import denoising
from jaxgen.method import Method, Spec, TrainState
from jaxgen.method.columns import Column
from jaxgen.method.learning import copied
from jaxgen.nn.control import controlled
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from jaxgen.tune import control as tuning

PAPER = "CCM: Adding Conditional Controls to Text-to-Image Consistency Models"
ENTRY = "jaxgen.tune.control.control"
MEANS = np.array([[1.5, 0.0], [0.0, 1.5], [-1.5, 0.0], [0.0, -1.5]], np.float32)
STD, BATCH, COUNT = 0.2, 128, 500
SPEC = Spec((2,), 1, levels=None, columns={"where": Column((2,), "float32")})
"""One class, of four clusters; the column says the sign of each coordinate, 0 where it is 0."""


def build(branch: bool, steps: int) -> Method:
    """A consistency model, or one whose branch alone is trained."""
    net: Any = MLP(1, 2, 64, 2)
    if branch:
        net = controlled(
            model=net, column="where", channels=2, shape=(2,), num_classes=1, out_channels=2
        )
    rate = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    base = denoising(SPEC, net, rate, Averages((2000,)), label_dropout=0.0)
    method = consistency(base, spec=SPEC, networks={}, teacher=None, steps=8)
    return tuning.control(method) if branch else method


def fitted(method: Method, state: TrainState, steps: int) -> Any:
    """Parameters after steps on fresh data."""

    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(1), number)
        which = jax.random.randint(jax.random.fold_in(key, number), (BATCH,), 0, 4)
        centre = jnp.asarray(MEANS)[which]
        image = centre + STD * jax.random.normal(key, (BATCH, 2))
        batch = {"image": image, "label": jnp.zeros(BATCH, int), "where": jnp.sign(centre)}
        return method.update(state, batch, key)[0], None

    return jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[0])(state).params


def sampled(method: Method, params: Any, told: bool) -> np.ndarray:
    """One-step samples [4, COUNT, 2] for each cluster, told which or not."""
    assert method.sampler is not None
    sample = method.sampler(solver="renoise.renoise", grid="uniform", steps=1, guidance=1.0)
    labels = jnp.zeros(4 * COUNT, int)
    where = jnp.repeat(jnp.sign(jnp.asarray(MEANS)), COUNT, 0)
    condition = {"label": labels, "where": where} if told else labels
    keys = jax.random.split(jax.random.key(2), 4 * COUNT)
    return np.asarray(quick_jit(sample.fn)(params, keys, condition)).reshape(4, COUNT, 2)


def checks(steps: int = 1000, seed: int = 0) -> list[Check]:
    """Nothing at first; then the base is as it was, and samples are where they are told."""
    base, method = build(False, steps), build(True, steps)
    known = fitted(base, quick_jit(base.init)(jax.random.key(seed)), steps)
    state = quick_jit(method.init)(jax.random.key(seed + 3))
    params = copied({**state.params, **known}, method.training.copies)
    plain, begun = sampled(base, known, False), sampled(method, params, True)
    results = [below("the branch at first moves samples by", np.abs(begun - plain).max(), 0.0)]
    tuned = fitted(method, state.replace(params=params), steps)
    same = jax.tree.map(lambda a, b: (a != b).sum(), tuned["net"], known["net"])
    results.append(below("parameters of the base that moved", sum(jax.tree.leaves(same)), 0))
    off = lambda x: np.linalg.norm(x.mean(1) - MEANS, axis=1).max()
    name = "largest distance of a conditional mean"
    results.append(below(f"{name}, told", off(sampled(method, tuned, True)), 0.15))
    results.append(control(below(f"{name}, the base", off(plain), 0.15)))
    untold = np.abs(sampled(method, tuned, False) - plain).max()
    results.append(below("not told, samples moved by", untold, 0.0))
    return results
