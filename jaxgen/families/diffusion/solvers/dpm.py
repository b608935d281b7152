"""DPM-Solver++: exponential integrators in log-SNR on data predictions (Lu et al. 2022b).

With lambda = ln(alpha / sigma), exactly x_s = sigma_s / sigma_t x_t + sigma_s times the integral of
e^lambda x0(lambda): the methods differ in how x0(lambda) is extrapolated. Where a lambda is
infinite (t=0, and t=1 if alpha is 0 there) or history is missing, a step is of first order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.solvers.base import (
    Carry,
    Solver,
    half_log_snr,
    phi,
    predict,
    safe_ratio,
)
from jaxgen.method import fold, normal
from jaxgen.method.streams import NOISE


def dpmpp_2s(path: Path, ratio: float = 0.5) -> Solver:
    """DPM-Solver++(2S), algorithm 1: a midpoint (at `ratio` of the step in lambda), two calls."""
    if not 0 < ratio < 1:
        raise invalid("solver.ratio", ratio, "0 < ratio < 1")

    def middle(t: jax.Array, s: jax.Array) -> jax.Array:
        a, b = half_log_snr(path, t), half_log_snr(path, s)
        return path.t_of_log_snr(2 * (a + ratio * (b - a)))

    def finite(t: jax.Array, s: jax.Array) -> jax.Array:
        return jnp.isfinite(half_log_snr(path, t)) & jnp.isfinite(half_log_snr(path, s))

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)

        def second(memory: Any) -> tuple[jax.Array, Any]:
            m = middle(t, s)
            q, memory = predict(denoiser, p.mix(path, m), m, memory, keys, 1)
            x0 = p.x0 + (q.x0 - p.x0) / (2 * ratio)
            return _advance(path, p, x0, t, s), memory

        out, memory = jax.lax.cond(finite(t, s), second, lambda m: (p.mix(path, s), m), memory)
        return out, (carry[0], memory)

    def times(number: int, t: np.ndarray, s: np.ndarray) -> list[float]:
        a, b = jnp.asarray(t), jnp.asarray(s)
        return [float(a), float(middle(a, b))] if finite(a, b) else [float(a)]

    return Solver(step=step, order=2, times=times)


def _advance(path: Path, p: Prediction, x0: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """sigma_s / sigma_t x + alpha_s (1 - e^-h) x0, with p.x0 and p.eps in place of x.

    Written as DDIM's step plus a correction, so that p's own eps is what is carried (x = alpha x0 +
    sigma eps would be the same but for guidance that renoises) and h may be infinite.
    """
    return p.mix(path, s) + _gain(path, t, s) * (x0 - p.x0)


def _gain(path: Path, t: jax.Array, s: jax.Array) -> jax.Array:
    """alpha_s (1 - e^-h), h = lambda_s - lambda_t >= 0, possibly infinite."""
    return path.alpha(s) - path.sigma(s) * path.alpha(t) / jnp.maximum(path.sigma(t), TINY)


def _past(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """No history yet: lambdas that are not finite, estimates that are 0."""
    return jnp.full(count, -jnp.inf, x.dtype), jnp.zeros((count, *x.shape), x.dtype)


def _multistep(
    path: Path,
    order: int,
    past: int,
    update: Callable[..., jax.Array],
    stochastic: bool = False,
) -> Solver:
    """A solver that remembers the last `past` (lambda, x0) and calls the denoiser once a step."""

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        (lambdas, estimates), memory = carry
        p, memory = predict(denoiser, x, t, memory, keys)
        here = half_log_snr(path, t)
        out = update(p, x, t, s, here, half_log_snr(path, s), lambdas, estimates, keys)
        lambdas = jnp.concatenate([here[None], lambdas])[:past]
        estimates = jnp.concatenate([p.x0[None], estimates])[:past]
        return out, ((lambdas, estimates), memory)

    return Solver(step=step, order=order, stochastic=stochastic, init=lambda x: _past(x, past))


def _slope(
    h: jax.Array, here: jax.Array, p: Prediction, past: jax.Array, x0: jax.Array
) -> jax.Array:
    """(x0 here - x0 before) h / (distance in lambda): the first difference, or 0."""
    return safe_ratio(h, here - past) * (p.x0 - x0)


def dpmpp_2m(path: Path) -> Solver:
    """DPM-Solver++(2M), algorithm 2: one call a step."""

    def update(
        p: Prediction, x: jax.Array, t: jax.Array, s: jax.Array, here: jax.Array,
        there: jax.Array, lambdas: jax.Array, estimates: jax.Array, keys: jax.Array,
    ) -> jax.Array:  # fmt: skip
        slope = _slope(there - here, here, p, lambdas[0], estimates[0])
        return _advance(path, p, p.x0 + 0.5 * slope, t, s)

    return _multistep(path, 2, 1, update)


def dpmpp_3m(path: Path) -> Solver:
    """DPM-Solver++(3M): x0 extrapolated by a parabola in lambda, integrated exactly; one call."""

    def update(
        p: Prediction, x: jax.Array, t: jax.Array, s: jax.Array, here: jax.Array,
        there: jax.Array, lambdas: jax.Array, estimates: jax.Array, keys: jax.Array,
    ) -> jax.Array:  # fmt: skip
        h = there - here
        first = _slope(h, here, p, lambdas[0], estimates[0])
        second = safe_ratio(h, lambdas[0] - lambdas[1]) * (estimates[0] - estimates[1])
        r0 = safe_ratio(here - lambdas[0], h)
        span = safe_ratio(here - lambdas[1], h)
        have = jnp.isfinite(lambdas[1]) & (span > 0)
        safe = jnp.where(have, span, 1.0)
        d1 = first + r0 / safe * (first - second)
        d2 = (first - second) / safe
        size = jnp.where(jnp.isfinite(h), h, 1.0)
        _, phi2, phi3 = phi(size, 3)
        # x0 = p.x0 + d1 z + d2 z^2 over the step, z in [0, 1]. Public code has d2 once, not twice,
        # which makes it a method of second order.
        third = p.mix(path, s) + path.alpha(s) * size * (phi2 * d1 + 2 * phi3 * d2)
        return jnp.where(have, third, _advance(path, p, p.x0 + 0.5 * first, t, s))

    return _multistep(path, 3, 2, update)


def dpmpp_sde_2m(path: Path) -> Solver:
    """SDE-DPM-Solver++(2M): the same integrator on the reverse SDE (Lu et al. 2022b, eq. 18)."""

    def update(
        p: Prediction, x: jax.Array, t: jax.Array, s: jax.Array, here: jax.Array,
        there: jax.Array, lambdas: jax.Array, estimates: jax.Array, keys: jax.Array,
    ) -> jax.Array:  # fmt: skip
        # A step of length zero at an end would be inf - inf.
        h = jnp.where(s < t, there - here, 0.0)
        slope = _slope(h, here, p, lambdas[0], estimates[0])
        decay = jnp.exp(-h)
        # sigma_s e^-h (alpha_t / sigma_t x0 + eps) is what is left of x, as in the ODE's step.
        share = path.alpha(t) / jnp.maximum(path.sigma(t), TINY)
        kept = path.sigma(s) * decay * (p.eps + share * p.x0)
        new = path.alpha(s) * -jnp.expm1(-2 * h) * (p.x0 + 0.5 * slope)
        noise = normal(fold(keys, NOISE), x.shape[1:], x.dtype)
        return kept + new + path.sigma(s) * jnp.sqrt(-jnp.expm1(-2 * h)) * noise

    return _multistep(path, 2, 1, update, stochastic=True)
