"""Data redaction: a class gives another's samples, and no weight of the backbone moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control
from experiments.shared.quick import quick_jit
from experiments.shared.student_fit import (
    CLASSES,
    COUNT,
    MEANS,
    SPEC,
    denoiser,
    learnt,
    trained,
)
from jaxgen.unlearn.redact import redact

PAPER = "Data Redaction from Conditional Generative Models"
ENTRY = "jaxgen.unlearn.redact.redact"
GONE, REFERENCE, STEPS = 0, 1, 800


def checks() -> list[Check]:
    """The redacted class, before and after, the kept ones, and the backbone's bits."""
    base, params = learnt(1000)
    method = redact(
        denoiser(optax.cosine_decay_schedule(3e-2, STEPS)),
        spec=SPEC,
        classes=(GONE,),
        reference=REFERENCE,
    )
    state = quick_jit(method.init)(jax.random.key(0))
    state = trained(method, state.replace(params={**state.params, **params}), STEPS, quick_jit)
    # All classes from the same noise.
    keys = jnp.tile(jax.random.split(jax.random.key(2), COUNT), CLASSES)
    labels = jnp.repeat(jnp.arange(CLASSES), COUNT)
    assert base.sampler is not None
    draw = quick_jit(base.sampler(solver="heun", steps=8).fn)
    before, after = (
        draw(p, keys, labels).reshape(CLASSES, COUNT, 2)
        for p in (params, method.plain(state.params))
    )
    results = []
    for name, x in (("", after), (", not redacted", before)):
        distance = jnp.linalg.norm(x[GONE][:, None] - MEANS, axis=-1)
        share = (distance.argmin(1) == REFERENCE).mean()
        off = jnp.abs(x[GONE] - before[REFERENCE]).max()
        for check in (
            above(f"share nearest to the reference{name}", share, 0.95),
            below(f"samples off the reference's of the same noise{name}", off, 1e-2),
        ):
            results.append(control(check) if name else check)
    kept = np.delete(np.arange(CLASSES), GONE)
    results.append(below("kept classes moved", jnp.abs(after - before)[kept].max(), 1e-2))
    bits = jax.tree.map(lambda a, b: bool((a != b).any()), params, {"net": state.params["net"]})
    changed = sum(jax.tree.leaves(bits))
    results.append(below("arrays of the network with other bits", changed, 0))
    return results
