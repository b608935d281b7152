"""CFG-Zero* (Fan et al. 2025): the unconditional velocity to scale, the first steps left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, to_prediction
from jaxgen.families.diffusion.guidance.interval import within_times
from jaxgen.families.diffusion.guidance.pair import At, Guided, needs_pair, ruled


def cfg_zero(guided: Denoiser, *, path: Path | None = None) -> Guided:
    """s v_bad + w (v_good - s v_bad), s = <v_good, v_bad> / |v_bad|^2 for each image.

    On velocities, so it depends on the path; weight = 1 is the good one itself. The other half of
    the paper is `zero_init`.
    """
    old = needs_pair(guided, "cfg_zero")
    if old.weight == 1:
        return old
    path = path_of(guided, path)

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        good, bad = p.velocity(path, at.t), q.velocity(path, at.t)
        axes = tuple(range(1, good.ndim))
        scale = (good * bad).sum(axes) / jnp.maximum((bad**2).sum(axes), TINY)
        bad = expand(scale, bad) * bad
        v = good + (old.weight - 1) * (good - bad)
        return to_prediction("velocity", v, at.x, at.t, path, variance=p.variance), memory

    return ruled(old, rule, old.start)


def zero_init(guided: Denoiser, *, above: float = 0.96, path: Path | None = None) -> Denoiser:
    """No motion where t > above, and no network call there: velocity 0.

    Their K of N uniform steps is above = 1 - (K - 1/2) / N. above = 1 is `guided` itself.
    """
    if not 0 <= above <= 1:
        raise invalid("guidance.above", above, "0 <= above <= 1")
    if above == 1:
        return guided
    path = path_of(guided, path)

    def still(x: jax.Array, t: jax.Array, like: Prediction) -> Prediction:
        p = to_prediction("velocity", jnp.zeros_like(x), x, t, path)
        return p._replace(variance=like.variance)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        def moving(memory: Memory) -> tuple[Prediction, Memory]:
            return guided(keys, x, t, memory)

        shapes, _ = jax.eval_shape(moving, memory)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        rest = still(x, t, nothing)
        if t.ndim:
            p, after = moving(memory)
            outside = expand(~within_times(t, 0.0, above), x)
            return jax.tree.map(lambda a, b: jnp.where(outside, a, b), rest, p), after
        return jax.lax.cond(within_times(t, 0.0, above), moving, lambda m: (rest, m), memory)

    return Denoiser(
        call,
        init=guided.init,
        calls=lambda t: guided.calls(t) if within_times(t, 0.0, above) else 0.0,
        path=guided.path,
    )
