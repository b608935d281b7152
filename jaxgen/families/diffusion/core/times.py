"""Which noise levels training sees: samplers of t in (0, 1), and their importance weights.

`Times.draw(keys[B], key, index[B], path, state) -> (t[B], weight[B])`: keys are the examples' own,
key the step's, index the examples' places in the global batch. weight multiplies the loss (1 but
for importance sampling). `update(state, t, loss)` sees each example's unweighted loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import T_MIN, Path

State = Any


def _nothing() -> State:
    return ()


def _unchanged(state: State, t: jax.Array, loss: jax.Array) -> State:
    return state


@dataclasses.dataclass(frozen=True)
class Times:
    """A sampler of training times; see the module's docstring."""

    draw: Callable[..., tuple[jax.Array, jax.Array]]
    init: Callable[[], State] = _nothing
    update: Callable[[State, jax.Array, jax.Array], State] = _unchanged


def _independent(t_of: Callable[[jax.Array, Path], jax.Array], noise: Callable[..., Any]) -> Times:
    """Each example's t from its own key alone."""

    def draw(
        keys: jax.Array, key: jax.Array, index: jax.Array, path: Path, state: State
    ) -> tuple[jax.Array, jax.Array]:
        t = t_of(jax.vmap(noise)(keys), path)
        return jnp.clip(t, T_MIN, 1 - T_MIN), jnp.ones_like(t)

    return Times(draw)


def uniform() -> Times:
    """t uniform in (0, 1)."""
    return _independent(lambda u, path: u, jax.random.uniform)


def stratified() -> Times:
    """t uniform in (0, 1), but evenly spread over each batch (as Kingma et al. 2021, app. I.1).

    t_i = frac(u + i / golden ratio), u the step's: evenly spaced to within a factor for *any* batch
    size, so neither devices nor microbatches need to know it. Exact in 32-bit integers.
    """

    def draw(
        keys: jax.Array, key: jax.Array, index: jax.Array, path: Path, state: State
    ) -> tuple[jax.Array, jax.Array]:
        # 2^32 / golden ratio; unsigned products wrap around, which is the fractional part.
        turns = index.astype(jnp.uint32) * jnp.uint32(2654435769) + jax.random.bits(key)
        t = jnp.clip((turns >> 8).astype(jnp.float32) * 2.0**-24, T_MIN, 1 - T_MIN)
        return t, jnp.ones_like(t)

    return Times(draw)


def levels(levels: int = 1000) -> Times:
    """Each of DDPM's noise levels alike (Ho et al. 2020, algorithm 1): the path's, or `levels`.

    On a path without levels of its own they lie at t = 1 / levels, 2 / levels, .., 1.
    """
    if levels < 1:
        raise invalid("times.levels", levels, "levels >= 1")

    def draw(
        keys: jax.Array, key: jax.Array, index: jax.Array, path: Path, state: State
    ) -> tuple[jax.Array, jax.Array]:
        count = path.levels or levels
        number = jax.vmap(lambda k: jax.random.randint(k, (), 0, count))(keys)
        t = path.level_time(number.astype(jnp.float32), count)
        # alpha is 0 at t=1 on paths that end in noise alone.
        t = t if path.levels else jnp.clip(t, T_MIN, 1 - T_MIN)
        return t, jnp.ones_like(t)

    return Times(draw)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """ln(sigma / alpha) normal (EDM, table 1: P_mean, P_std)."""
    _positive("times.std", std)
    return _independent(lambda z, path: path.t_of_sigma(jnp.exp(mean + std * z)), jax.random.normal)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """logit(t) normal (Esser et al. 2024, eq. 19)."""
    _positive("times.std", std)
    return _independent(lambda z, path: jax.nn.sigmoid(mean + std * z), jax.random.normal)


def by_loss(bins: int = 64, decay: float = 0.9, floor: float = 0.01) -> Times:
    """t with density in proportion to the root mean squared loss (Nichol & Dhariwal 2021, eq. 18).

    The history is a running mean of loss^2 in `bins` bins of t; it lives in the TrainState's
    `extra`. decay: of the history, at each update, in bins that were seen. floor: share of draws
    that stay uniform. Until every bin has been seen, draws are uniform. The weight 1 / (p(t))
    keeps the expected loss that of uniform t.
    """
    if bins < 2:
        raise invalid("times.bins", bins, "bins >= 2")
    if not 0 < floor <= 1:
        raise invalid("times.floor", floor, "0 < floor <= 1")

    def probabilities(state: State) -> jax.Array:
        root = jnp.sqrt(state["square"])
        p = (1 - floor) * root / jnp.maximum(root.sum(), 1e-20) + floor / bins
        return jnp.where(state["seen"].all(), p, 1 / bins)

    def draw(
        keys: jax.Array, key: jax.Array, index: jax.Array, path: Path, state: State
    ) -> tuple[jax.Array, jax.Array]:
        p = probabilities(state)
        u = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys)
        k = jnp.minimum(jnp.searchsorted(jnp.cumsum(p), u[:, 0], side="right"), bins - 1)
        t = (k + u[:, 1]) / bins
        return jnp.clip(t, T_MIN, 1 - T_MIN), 1 / (bins * p[k])

    def init() -> State:
        return {"square": jnp.zeros(bins, jnp.float32), "seen": jnp.zeros(bins, bool)}

    def update(state: State, t: jax.Array, loss: jax.Array) -> State:
        k = jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)
        count = jnp.zeros(bins).at[k].add(1.0)
        square = jnp.zeros(bins).at[k].add(loss**2) / jnp.maximum(count, 1)
        old = jnp.where(state["seen"], decay * state["square"] + (1 - decay) * square, square)
        return {
            "square": jnp.where(count > 0, old, state["square"]),
            "seen": state["seen"] | (count > 0),
        }

    return Times(draw, init, update)


def _positive(option: str, value: float) -> None:
    if value <= 0:
        raise invalid(option, value, "a number > 0")
