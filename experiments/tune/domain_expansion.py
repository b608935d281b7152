"""Domain expansion: two new domains along what a generator does not use; the old one stays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.method import minimise
from jaxgen.tune.expansion import dormant, expansion, placed

PAPER = "Domain Expansion of Image Generators"
ENTRY = "jaxgen.tune.expansion.expansion"
D, WIDTH, OUT, STEPS, SHIFT = 6, 32, 3, 1500, 4.0
DOMAINS = jnp.array([[3.0, 0.0, -1.0], [-2.0, 2.0, 1.0]])
"""Means of the new domains; each keeps the old one's shape about its mean."""


def generator() -> Any:
    """Two layers, the first blind to two of the latents' directions."""
    keys = jax.random.split(jax.random.key(0), 3)
    first = jax.random.normal(keys[0], (D, WIDTH)) / D**0.5
    blind, _ = jnp.linalg.qr(jax.random.normal(keys[1], (D, 2)))
    first = first - blind @ (blind.T @ first)
    last = jax.random.normal(keys[2], (WIDTH, OUT)) / WIDTH**0.5
    return {"first": first, "last": last, "bias": jnp.zeros(OUT)}


def generate(params: Any, z: jax.Array) -> jax.Array:
    """Samples [B, 3]."""
    return jnp.tanh(z @ params["first"]) @ params["last"] + params["bias"]


def moved_to(mean: jax.Array) -> Any:
    """A domain's loss: the mean of its samples."""
    return lambda x: ((x.mean(0) - mean) ** 2).sum()


def expanded(directions: jax.Array, replay: float) -> Any:
    """The generator after training."""
    losses = [moved_to(mean) for mean in DOMAINS]
    loss = expansion(generate, generator(), directions, losses, shift=SHIFT, replay=replay)
    many = jax.random.normal(jax.random.key(1), (STEPS, 128, D))
    rate = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    return quick_jit(lambda: minimise(loss, rate, generator(), many)[0])()


def checks() -> list[Check]:
    """What is felt of the directions; then the base, the domains, and half way to one."""
    old, z = generator(), jax.random.normal(jax.random.key(2), (4000, D))
    directions, felt = dormant(old["first"], 2)
    results = [below("largest singular value of a dormant direction", felt.max(), 1e-3)]
    params = expanded(directions, 10.0)

    def at(params: Any, *shifts: float) -> np.ndarray:
        return np.asarray(generate(params, placed(z, directions, jnp.array(shifts))))

    size = at(old, 0.0, 0.0).std()
    kept = lambda p: np.sqrt(((at(p, 0.0, 0.0) - at(old, 0.0, 0.0)) ** 2).mean()) / size
    name = "change of the base's samples, of their deviation"
    results.append(below(name, kept(params), 0.05))
    results.append(control(below(f"{name}, without replay", kept(expanded(directions, 0.0)), 0.05)))
    for mean, shifts in zip(DOMAINS, np.eye(2) * SHIFT, strict=True):
        off = np.abs(at(params, *shifts).mean(0) - mean).max()
        results.append(below("largest error of a new domain's mean", off, 0.1))
        results.append(
            control(below("the same before", np.abs(at(old, *shifts).mean(0) - mean).max(), 0.1))
        )
    way = at(params, SHIFT / 2, 0.0).mean(0) @ DOMAINS[0] / (DOMAINS[0] @ DOMAINS[0])
    results.append(near("how far a half shift goes to the first domain", float(way), 0.5, 0.25))
    return results
