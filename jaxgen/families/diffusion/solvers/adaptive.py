"""Runge-Kutta with step sizes of its own choice, for each image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.solvers.base import Carry, Solver, predict

# Bogacki & Shampine (1989), 3(2), and Dormand & Prince (1980), 5(4): nodes, rows of the tableau
# (the last row is the solution), and weights of the embedded lower-order solution.
TABLEAUS: dict[int, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    3: (
        (0, 1 / 2, 3 / 4, 1),
        ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (7 / 24, 1 / 4, 1 / 3, 1 / 8),
    ),
    5: (
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
}


def adaptive(
    path: Path, order: int = 3, rtol: float = 1e-3, atol: float = 1e-3, max_tries: int = 1000
) -> Solver:
    """Embedded Runge-Kutta 3(2) or 5(4) between the times of the grid (Song et al. 2021, D.4).

    In the coordinates of `Path.fraction`, where the flow is smooth at both ends. Every image has
    times and step sizes of its own, so it is the same image in any batch; the denoiser is called
    with t [B] until the slowest image is done. rtol, atol: on the root mean square error of a step.
    max_tries: steps, accepted or not, within one step of the grid; an image that needs more ends
    as NaN, which the scores count. Network calls depend on the sample and are reported as NaN; each
    try costs 3 (order 3) or 6 (order 5), and one more at each time of the grid.
    """
    if order not in TABLEAUS:
        raise invalid("solver.order", order, "3 or 5")
    if rtol <= 0 or atol <= 0 or max_tries < 1:
        raise invalid("solver.rtol", (rtol, atol, max_tries), "rtol, atol > 0 and max_tries >= 1")
    nodes, rows, embedded = TABLEAUS[order]

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        end = path.fraction(s)

        def slope(y: jax.Array, f: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
            time = path.t_of_fraction(f)
            scale = expand(path.alpha(time) + path.sigma(time), y)
            p, memory = predict(denoiser, scale * y, time, memory, keys)
            return p.eps - p.x0, memory

        def attempt(state: dict[str, Any]) -> dict[str, Any]:
            f, y, memory = state["f"], state["y"], state["memory"]
            # Steps are negative: f falls. The last one lands on the end exactly.
            h = jnp.maximum(state["h"], end - f)
            slopes = [state["slope"]]
            for node, row in zip(nodes[1:], rows[1:], strict=True):
                moved = sum(w * k for w, k in zip(row, slopes, strict=True))
                at = y + expand(h, y) * moved
                time = jnp.where(node == 1, jnp.where(h <= end - f, end, f + h), f + node * h)
                k, memory = slope(at, time, memory)
                slopes.append(k)
            lower = sum(w * k for w, k in zip(embedded, slopes, strict=True))
            error = expand(h, y) * (moved - lower)
            size = atol + rtol * jnp.maximum(jnp.abs(y), jnp.abs(at))
            error = jnp.sqrt(((error / size) ** 2).reshape(f.shape[0], -1).mean(1))
            running = f > end
            taken = running & (error <= 1)
            factor = jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** (-1 / order), 0.2, 5.0)

            def accept(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(expand(taken, new), new, old)

            return {
                "f": accept(jnp.where(h <= end - f, end, f + h), f),
                "y": accept(at, y),
                # First same as last: the last stage is the next step's first.
                "slope": accept(slopes[-1], state["slope"]),
                "h": jnp.where(running, jnp.where(jnp.isfinite(error), factor, 0.2) * h, h),
                "memory": memory,
                "tries": state["tries"] + 1,
            }

        start = jnp.broadcast_to(path.fraction(t), x.shape[:1]).astype(x.dtype)
        y = x / (path.alpha(t) + path.sigma(t))
        first, memory = slope(y, start, carry[1])
        state = {
            "f": start,
            "y": y,
            "slope": first,
            "h": end - start,
            "memory": memory,
            "tries": jnp.zeros((), jnp.int32),
        }
        state = jax.lax.while_loop(
            lambda state: jnp.any(state["f"] > end) & (state["tries"] < max_tries), attempt, state
        )
        done = expand(state["f"] <= end, x)
        out = jnp.where(done, (path.alpha(s) + path.sigma(s)) * state["y"], jnp.nan)
        return out, (carry[0], state["memory"])

    return Solver(step=step, order=order, times=None)
