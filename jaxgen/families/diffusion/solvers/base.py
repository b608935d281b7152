"""What a solver is, and the handful of helpers that all of them share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.method import fold, normal
from jaxgen.method.streams import NOISE

History = Any
Carry = tuple[History, Any]
Step = Callable[
    [Denoiser, jax.Array, jax.Array, jax.Array, Carry, jax.Array], tuple[jax.Array, Carry]
]
Moments = Callable[
    [Denoiser, jax.Array, jax.Array, jax.Array, Carry, jax.Array],
    tuple[jax.Array, jax.Array, Carry],
]


def _no_history(x: jax.Array) -> History:
    return ()


def _at_start(number: int, t: np.ndarray, s: np.ndarray) -> list[float]:
    return [float(t)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """One step of a sampler, from time t down to s < t.

    step(denoiser, x[B, ...], t, s, carry, keys[B]) -> (x, carry); carry is (history, memory), the
    solver's own history and the denoiser's memory. init(x) -> history. order: global order of
    convergence (of the mean and covariance where `stochastic`; 0 where no order is claimed).
    times(n, t, s): at which times step n, from t to s, calls the denoiser, None if it depends on x.
    moments: of a step that is one draw from N(mean, std^2), as `gaussian` makes it; else None.
    """

    step: Step
    order: int
    stochastic: bool = False
    init: Callable[[jax.Array], History] = _no_history
    times: Callable[[int, np.ndarray, np.ndarray], list[float]] | None = _at_start
    moments: Moments | None = None

    def calls(self, denoiser: Denoiser, grid: np.ndarray, first: int = 0) -> float:
        """Network evaluations for one sample on a grid; NaN where they depend on the sample.

        first: the number of the step that starts at grid[0].
        """
        if self.times is None:
            return float("nan")
        return float(
            sum(
                denoiser.calls(at)
                for n, (t, s) in enumerate(zip(grid, grid[1:], strict=False), first)
                for at in self.times(n, t, s)
            )
        )


def gaussian(moments: Moments, *, order: int = 1) -> Solver:
    """The solver whose step is a draw from N(mean, std^2), whose probability is then known.

    moments(denoiser, x, t, s, carry, keys) -> (mean [B, ...], std () or [B, ...], carry), std being
    0 where nothing is drawn.
    """

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        mean, std, carry = moments(denoiser, x, t, s, carry, keys)
        return mean + std * normal(fold(keys, NOISE), x.shape[1:], x.dtype), carry

    return Solver(step=step, order=order, stochastic=True, moments=moments)


def gaussian_log_prob(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """ln N(x; mean, std^2) of x [B, ...], [B]; elements of std 0 add nothing."""
    drawn = jnp.broadcast_to(std, x.shape) > 0
    std = jnp.where(drawn, std, 1.0)
    each = -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    return jnp.where(drawn, each, 0.0).reshape(x.shape[0], -1).sum(1)


def predict(
    denoiser: Denoiser, x: jax.Array, t: jax.Array, memory: Any, keys: jax.Array, stage: int = 0
) -> tuple[Prediction, Any]:
    """The denoiser's estimate, with keys of its own for each stage of a step."""
    return denoiser(fold(keys, stage + 1), x, t, memory)


def half_log_snr(path: Path, t: jax.Array) -> jax.Array:
    """lambda of the DPM-Solver papers, ln(alpha / sigma)."""
    return path.log_snr(t) / 2


def safe_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b where both are finite and b is not 0, else 0."""
    good = jnp.isfinite(a) & jnp.isfinite(b) & (b != 0)
    return jnp.where(good, jnp.where(good, a, 0.0) / jnp.where(good, b, 1.0), 0.0)


def phi(h: jax.Array, count: int) -> list[jax.Array]:
    """phi_1(-h), ..., phi_count(-h), the functions of exponential integrators, for h >= 0.

    phi_k(-h) is the integral over [0, 1] of e^(-h (1 - z)) z^(k-1) / (k-1)!. By the recurrence
    phi_(k+1) = (1 / k! - phi_k) / h, and by its series for small h, where that cancels.
    """
    small = h < 1.0
    safe = jnp.where(small, 1.0, h)
    near = jnp.where(small, h, 0.0)
    out, factorial, value = [], 1.0, -jnp.expm1(-safe) / safe
    for k in range(1, count + 1):
        series = jnp.zeros_like(h)
        for j in reversed(range(14)):
            series = 1 / math.factorial(j + k) - near * series
        out.append(jnp.where(small, series, value))
        factorial *= k
        value = (1 / factorial - value) / safe
    return out
