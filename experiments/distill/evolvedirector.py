"""EvolveDirector: a student of several black boxes asks where it is behind, and of who is best."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.tabular import BATCH, DATA, SPEC, VALUES, Trained, table
from jaxgen.distill.pool import pool, standing

PAPER = (
    "EvolveDirector: Approaching Advanced Text-to-Image Generation with Large Vision-Language "
    "Models"
)
ENTRY = "jaxgen.distill.pool.pool"
STEPS, EARLY, FLAT = 400, 30, np.full(VALUES, 1 / VALUES)
GOOD = ((True, True, False), (False, False, True))
"""Which classes either teacher has learnt; of the others it knows nothing."""


def knowing(classes: Any) -> Any:
    """The parameters of a table that has the data's law in these classes, an even one elsewhere."""
    rows = [DATA[c] if known else FLAT for c, known in enumerate(classes)]
    return {"net": {"logits": jnp.log(jnp.asarray(np.stack(rows), jnp.float32))}}


def judge(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Ln of the probability of a sample under the data's law."""
    return jnp.log(jnp.asarray(DATA, jnp.float32))[labels, x[:, 0]]


def directed(
    explore: float, teachers: tuple[str, ...] = ("a", "b")
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(total variation from the data [C], each class's share of the questions, best teachers).

    The student knows class 0 already; shares are of some early steps, before it knows all.
    """
    base = table(optax.cosine_decay_schedule(3e-2, STEPS))
    networks = {}
    for name, good in zip("ab", GOOD, strict=True):
        networks[name] = Trained(base)
        networks[name].params = knowing(good)
    options = dict(reward=judge, teachers=teachers, explore=explore, margin=0.02, memory=0.9)
    method = pool(base, spec=SPEC, networks=networks, **options)
    state = method.init(jax.random.key(0)).replace(params=knowing((True, False, False)))
    batch = {"image": jnp.zeros((BATCH, 1), int), "label": jnp.zeros(BATCH, int)}

    def body(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        state, _ = method.update(state, batch, jax.random.key(number))
        return state, state.extra["pool"]["counts"][-1]

    state, counts = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(STEPS)))(state)
    law = jax.nn.softmax(state.params["net"]["logits"])
    best, _ = standing(**state.extra["pool"])
    off = np.abs(np.asarray(law) - DATA).sum(1) / 2
    return off, np.asarray(counts[EARLY] / counts[EARLY].sum()), np.asarray(best)


def checks() -> list[Check]:
    """Errors, what is still asked for, and of whom; without direction, and of one teacher alone."""
    off, shares, best = directed(0.1)
    wanted = np.array([0, 0, 1])
    results = [
        below("largest total variation of a class from the data", off.max(), 0.1),
        below("classes whose best teacher is another", float((best != wanted).sum()), 0.0),
        below("share of questions of the class that it knew", shares[0], 0.15),
    ]
    _, even, _ = directed(1.0)
    results.append(control(below("the same, of any class", even[0], 0.15)))
    alone, _, _ = directed(0.1, ("a",))
    results.append(control(below("the first check, of one teacher alone", alone.max(), 0.1)))
    return results
