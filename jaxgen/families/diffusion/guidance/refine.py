"""FlowTurbo's velocity refiner: in the last steps, a small network corrects the velocity before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction, to_prediction

Refiner = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""r(x_t [B, ...], the velocity before [B, ...], t [B]) -> [B, ...]."""


def refine(
    guided: Denoiser,
    refiner: Refiner,
    path: Path,
    grid: jax.Array,
    *,
    last: int = 4,
    cost: float = 0.05,
) -> Denoiser:
    """`guided`, but v_t = v_before + r(x_t, v_before, t) in the grid's last steps (Zhao et al.).

    v_before is the velocity of the call before, refined or not, and is the memory's second part; so
    r = 0 reuses it. last: how many steps, less than the grid has; a call at their start or
    below is the refiner's. cost: a refiner's call in calls of the model, as the ratio of the
    networks' multiply-adds says. One time for the batch (no adaptive solver).
    Raises UsageError: last out of range, cost < 0.
    """
    steps = grid.shape[0] - 1
    if not 0 <= last < steps:
        raise invalid("guidance.last", last, f"0 to {steps - 1}, fewer than the steps")
    if cost < 0:
        raise invalid("guidance.cost", cost, "cost >= 0")
    if last == 0:
        return guided
    start = np.asarray(grid, np.float32)[steps - last]

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        if t.ndim:
            raise invalid("sample.solver", "adaptive", "a solver of fixed steps, to refine")

        def whole(memory: Memory) -> tuple[Prediction, Memory]:
            p, inner = guided(keys, x, t, memory[0])
            p = p._replace(variance=None)
            return p, (inner, p.velocity(path, t))

        def small(memory: Memory) -> tuple[Prediction, Memory]:
            inner, before = memory
            v = before + refiner(x, before, jnp.broadcast_to(t, x.shape[:1]))
            return to_prediction("velocity", v, x, t, path), (inner, v)

        return jax.lax.cond(t.astype(jnp.float32) <= start, small, whole, memory)

    return Denoiser(
        call,
        init=lambda x: (guided.init(x), jnp.zeros_like(x)),
        calls=lambda t: cost if np.float32(t) <= start else guided.calls(t),
        path=path,
    )


def refiner_loss(
    denoiser: Denoiser, refiner: Refiner, keys: jax.Array, x: jax.Array, t: jax.Array, h: jax.Array
) -> jax.Array:
    """Mean squared error of a refiner against the frozen model, a step of h from x_t [B, ...], [].

    x is noised data at t []: the model's velocity there, Euler's step along it to t - h, and the
    model's velocity there, which v + r(., v, t - h) has to be (their section 3.2). Only
    the refiner gets a gradient.
    """
    path = denoiser.path
    if path is None:
        raise invalid("refiner_loss", "a denoiser without a path", "one that knows its path")
    p, memory = denoiser(keys, x, t, denoiser.init(x))
    v, s = p.velocity(path, t), t - h
    moved = p.mix(path, s)
    wanted = denoiser(keys, moved, s, memory)[0].velocity(path, s)
    v, moved, wanted = jax.lax.stop_gradient((v, moved, wanted))
    out = v + refiner(moved, v, jnp.broadcast_to(s, x.shape[:1]))
    return jnp.mean((out - wanted) ** 2)


def of_network(model: Any, params: Any, labels: jax.Array) -> Refiner:
    """A Flax network module(x, noise [B], labels) on the channels of x and v as a refiner.

    labels [B]; the network has as many output channels as x.
    """

    def refiner(x: jax.Array, before: jax.Array, t: jax.Array) -> jax.Array:
        both = jnp.concatenate([x, before], axis=-1)
        return model.apply({"params": params}, both, t, labels)

    return refiner
