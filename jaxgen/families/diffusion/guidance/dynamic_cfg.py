"""Dynamic guidance by online feedback (Papalampidi et al. 2025): the best weight of a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, Guided, extrapolate, needs_pair, ruled


def dynamic_cfg(
    guided: Denoiser,
    evaluate: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    weights: Sequence[float] = (1.0, 2.0, 4.0),
) -> Guided:
    """At each call and for each image the weight whose x0 `evaluate` likes best.

    evaluate(x0[B, ...], t) -> [B], higher is better; several evaluators are a sum of theirs, whose
    weights may depend on t. The pair's own weight and rule are replaced. Two network calls, however
    many weights; of equal ones the first wins.
    """
    old = needs_pair(guided, "dynamic_cfg")
    if not weights:
        raise invalid("guidance.weights", weights, "at least one weight")
    rules = [extrapolate(old.good, old.bad, w).rule for w in weights]

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        tried = [rule(p, q, at, ())[0] for rule in rules]
        best = jnp.argmax(jnp.stack([evaluate(out.x0, at.t) for out in tried]), axis=0)
        out = tried[0]
        for number, other in enumerate(tried[1:], 1):
            chosen = expand(best == number, at.x)
            out = jax.tree.map(lambda a, b, c=chosen: jnp.where(c, b, a), out, other)
        return out, memory

    return ruled(old, rule, lambda x: (), weight=max(weights))
