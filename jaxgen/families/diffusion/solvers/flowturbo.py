"""FlowTurbo's solver: Heun, then a trapezoid that calls once a step, then Euler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.solvers.base import Carry, Solver, predict

NEVER = 2**31 - 1
"""The number of a step that no run has."""


def flowturbo(path: Path, steps: int, heun: int = 1, refine: int = 0) -> Solver:
    """Blocks of Heun, pseudo-corrector and Euler steps (Zhao et al. 2024), in one program.

    heun: of the first steps, 2 calls each. Those after are trapezoids from the estimate that
    corrected the step before, so 1 call each, and the order is still 2: that estimate was made at a
    predicted x, off by a step's square. refine: of the last steps, Euler's, 1 call each, which
    `guidance.refine` answers with its small network; the step before them is Euler's too, by the
    estimate at hand, without a call. A step to t=0 is Euler's.
    Raises UsageError: heun < 1 (there is nothing to reuse yet), more steps than `steps`.
    """
    free_step = steps - refine - 1 if refine else NEVER
    if heun < 1 or refine < 0 or heun + refine + (1 if refine else 0) > steps:
        allowed = f"heun >= 1, and with refine and the step before that <= steps={steps}"
        raise invalid("solver.heun", (heun, refine), allowed)

    def kind(number: Any, s: Any) -> Any:
        """0: Euler's. 1: Heun's. 2: the pseudo-corrector's. 3: Euler's without a call."""
        corrected = (s > 0) & (number < free_step)
        return corrected * (1 + 1 * (number >= heun)) + 3 * (number == free_step)

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        (number, x0, eps), memory = carry
        d_alpha, d_sigma = path.alpha(s) - path.alpha(t), path.sigma(s) - path.sigma(t)

        def increment(p: Prediction) -> jax.Array:
            return d_alpha * p.x0 + d_sigma * p.eps

        def first(memory: Any) -> tuple[jax.Array, Prediction, Any]:
            p, memory = predict(denoiser, x, t, memory, keys)
            p = p._replace(variance=None)
            return increment(p), p, memory

        def trapezoid(p: Prediction, memory: Any) -> tuple[jax.Array, Prediction, Any]:
            q, memory = predict(denoiser, x + increment(p), s, memory, keys, 1)
            q = q._replace(variance=None)
            return 0.5 * (increment(p) + increment(q)), q, memory

        def heuns(memory: Any) -> tuple[jax.Array, Prediction, Any]:
            _, p, memory = first(memory)
            return trapezoid(p, memory)

        def reused(memory: Any) -> tuple[jax.Array, Prediction, Any]:
            return trapezoid(Prediction(x0, eps), memory)

        def free(memory: Any) -> tuple[jax.Array, Prediction, Any]:
            p = Prediction(x0, eps)
            return increment(p), p, memory

        branches = [first, heuns, reused, free]
        change, p, memory = jax.lax.switch(kind(number, s), branches, memory)
        return x + change, ((number + 1, p.x0, p.eps), memory)

    def times(number: int, t: np.ndarray, s: np.ndarray) -> list[float]:
        a, b = float(t), float(s)
        return [[a], [a, b], [b], []][int(kind(number, s))]

    return Solver(
        step=step,
        order=2,
        init=lambda x: (jnp.zeros((), jnp.int32), jnp.zeros_like(x), jnp.zeros_like(x)),
        times=times,
    )
