"""DoD: a stage's sample keeps the sub-cluster of the one before, and none of its noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control
from experiments.shared.told import IN_HASTE
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from jaxgen.tune.priors import priors

PAPER = "Diffusion Models Need Visual Priors for Image Generation"
ENTRY = "jaxgen.tune.priors.priors"
SPEC, STEPS, BATCH, COUNT, NOISE = Spec((4, 4, 1), 2, None), 900, 64, 500, 0.4
CENTRES = np.random.default_rng(0).choice([-1.0, 1.0], (2, 4, 16)).astype(np.float32)
"""Four sub-clusters of each of two classes, as images of 16 pixels."""


def drawn() -> tuple[Any, Any]:
    """(samples of the first stage, those of the second from them), [COUNT, 16], and labels."""
    model = MLP(2, 1, width=48, depth=2, conditions=(("prior", "vector", 4),))
    rate = optax.cosine_decay_schedule(5e-3, STEPS)
    base = denoising(SPEC, model, optax.adam(rate), Averages((100,)))
    of = [priors(base, spec=SPEC, stages=n, width=16, depth=1, heads=2, patch=2) for n in (1, 2)]
    rng = np.random.default_rng(1)
    label, sub = rng.integers(0, 2, (STEPS, BATCH)), rng.integers(0, 4, (STEPS, BATCH))
    x = CENTRES[label, sub] + NOISE * rng.normal(size=(STEPS, BATCH, 16)).astype(np.float32)
    data = {"image": x.reshape(STEPS, BATCH, 4, 4, 1), "label": label.astype(np.int32)}
    labels = jnp.arange(COUNT, dtype=jnp.int32) % 2

    def run(data: Any) -> Any:
        def body(state: Any, inputs: Any) -> tuple[Any, None]:
            number, batch = inputs
            return of[0].update(state, batch, jax.random.fold_in(jax.random.key(0), number))[
                0
            ], None

        state, _ = jax.lax.scan(body, of[0].init(jax.random.key(1)), (jnp.arange(STEPS), data))
        return state.params

    params = jax.jit(run, compiler_options=IN_HASTE)(data)
    keys = jax.random.split(jax.random.key(2), COUNT)
    stages = [m.sampler(steps=8).fn(params, keys, labels) for m in of]
    return [np.asarray(x).reshape(COUNT, 16) for x in stages], np.asarray(labels)


def checks() -> list[Check]:
    """What the second stage has of the first."""
    (first, second), labels = drawn()
    nearest = [((x[:, None] - CENTRES[labels]) ** 2).sum(-1).argmin(1) for x in (first, second)]
    check = "share of samples in the sub-cluster of the stage before"
    kept = (nearest[0] == nearest[1]).mean()
    results = [above(check, kept, 0.9)]
    # Of the same class, two further on.
    others = (np.roll(nearest[0], 2) == nearest[1]).mean()
    results.append(control(above(f"{check}, of another sample's", others, 0.9)))
    rest = [x - CENTRES[labels, n] for x, n in zip((first, second), nearest, strict=True)]
    check = "correlation of what is left"
    alike = np.corrcoef(rest[0].ravel(), rest[1].ravel())[0, 1]
    results.append(below(check, abs(alike), 0.2))
    same = np.corrcoef(rest[0].ravel(), rest[0].ravel())[0, 1]
    results.append(control(below(f"{check}, of a stage and itself", same, 0.2)))
    return results
