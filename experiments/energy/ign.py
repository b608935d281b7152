"""An idempotent network of two circles: samples lie on them, and stay where they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from jaxgen.families.energy import idempotent
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

PAPER = "Idempotent Generative Network"
ENTRY = "jaxgen.families.energy.idempotent.idempotent"
STEPS, BATCH, COUNT = 1000, 256, 1000
SPEC = Spec((2,), 2, levels=None)
"""Class y is the circle of radius 1 + y."""


def circles(key: jax.Array) -> dict[str, jax.Array]:
    """A batch of points at even angles."""
    which, where = jax.random.split(key)
    labels = jax.random.randint(which, (BATCH,), 0, 2)
    angle = jax.random.uniform(where, (BATCH,), maxval=2 * jnp.pi)
    points = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return {"image": (1 + labels)[:, None] * points, "label": labels}


def drawn(seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Samples [2, COUNT, 2] of each class by one call, and by two."""
    rate = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
    method = idempotent(SPEC, MLP(2, 2, 32, 2), rate, Averages((1000,)), **options)

    def body(state: Any, key: jax.Array) -> tuple[Any, None]:
        return method.update(state, circles(key), key)[0], None

    keys = jax.random.split(jax.random.key(seed), STEPS)
    state = jax.jit(lambda s: jax.lax.scan(body, s, keys)[0])(method.init(jax.random.key(seed)))
    assert method.sampler is not None
    own, labels = jax.random.split(jax.random.key(9), 2 * COUNT), jnp.repeat(jnp.arange(2), COUNT)
    once, twice = (
        np.asarray(jax.jit(method.sampler(steps=n).fn)(state.params, own, labels)) for n in (1, 2)
    )
    return once.reshape(2, COUNT, 2), twice.reshape(2, COUNT, 2)


def off(x: np.ndarray) -> float:
    """The mean distance of samples from their circle, the larger of both classes."""
    return float(np.abs(np.linalg.norm(x, axis=-1) - [[1.0], [2.0]]).mean(1).max())


def checks(seed: int = 0) -> list[Check]:
    """On the circles, all round them, and idempotent; where nothing asks for that, they are not."""
    once, twice = drawn(seed)
    angles = np.arctan2(once[..., 1], once[..., 0])
    eighths = [np.histogram(a, 8, (-np.pi, np.pi))[0].min() / COUNT for a in angles]
    name, moved = "mean distance from the circle", "mean distance that a second call moves samples"
    results = [
        below(name, off(once), 0.05),
        below(moved, np.abs(twice - once).mean(), 0.05),
        below("share missing of the emptiest eighth", 0.125 - min(eighths), 0.06),
    ]
    once, twice = drawn(seed, idempotence=1e-6)
    results.append(control(below(f"{name}, reconstruction alone", off(once), 0.05)))
    results.append(
        control(below(f"{moved}, reconstruction alone", np.abs(twice - once).mean(), 0.05))
    )
    return results
