"""Stochastic interpolants (Albergo, Boffi & Vanden-Eijnden 2023): bridges between any two laws.

x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z with z ~ N(0, I), t=0 data and t=1 base (their time
reversed). The velocity b(x, t) = E[dx_t/dt | x_t = x] and the denoiser eta(x, t) = E[z | x_t = x]
minimise quadratic losses; the score is -eta / gamma; and the same two functions sample by an ODE or
by an SDE whose noise is chosen after training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import T_MIN, Path, Schedule, expand
from jaxgen.method import fold, normal
from jaxgen.method.streams import PAIR_NOISE, PAIR_TIME

Field = Callable[[jax.Array, jax.Array], jax.Array]
"""fn(x[B, ...], t[]) -> [B, ...]."""


@dataclasses.dataclass(frozen=True)
class Interpolant:
    """alpha(0) = beta(1) = 1, alpha(1) = beta(0) = 0, gamma(0) = gamma(1) = 0 (their def. 1)."""

    alpha: Schedule
    beta: Schedule
    gamma: Schedule

    def mix(self, x0: jax.Array, x1: jax.Array, z: jax.Array, t: jax.Array) -> jax.Array:
        """x_t for x0, x1, z [B, ...] and t [] or [B]."""
        return (
            expand(self.alpha(t), x0) * x0
            + expand(self.beta(t), x0) * x1
            + expand(self.gamma(t), x0) * z
        )

    def speed(self, x0: jax.Array, x1: jax.Array, z: jax.Array, t: jax.Array) -> jax.Array:
        """dx_t/dt, what the velocity is regressed on; times are kept T_MIN inside (0, 1)."""
        t = jnp.clip(t, T_MIN, 1 - T_MIN)
        return jax.jvp(lambda s: self.mix(x0, x1, z, s), (t,), (jnp.ones_like(t),))[1]

    def score(self, eta: jax.Array, t: jax.Array) -> jax.Array:
        """The score of x_t's distribution, -eta / gamma (their eq. 2.16)."""
        return -eta / expand(jnp.maximum(self.gamma(t), T_MIN), eta)


def linear(scale: float = 2.0) -> Interpolant:
    """alpha = 1 - t, beta = t, gamma = sqrt(scale t (1 - t)) (their table 4; scale = 2: def. 1)."""
    _check(scale)
    return Interpolant(lambda t: 1 - t, lambda t: t * 1.0, _bridge(scale))


def trigonometric(scale: float = 2.0) -> Interpolant:
    """alpha = cos(pi t / 2), beta = sin(pi t / 2), gamma as `linear` (their table 4)."""
    _check(scale)
    half = math.pi / 2
    return Interpolant(
        lambda t: jnp.sin(half * (1 - t)), lambda t: jnp.sin(half * t), _bridge(scale)
    )


def one_sided(path: Path) -> Interpolant:
    """A Gaussian base in the place of z, no bridge noise: diffusion's own path (their sec. 3.2)."""
    return Interpolant(path.alpha, path.sigma, lambda t: 0.0 * t)


def mirror(scale: float = 2.0) -> Interpolant:
    """From data to data: x_t = x0 + gamma(t) z (their sec. 3.3); give x1 = x0 or anything."""
    _check(scale)
    return Interpolant(jnp.ones_like, jnp.zeros_like, _bridge(scale))


def _bridge(scale: float) -> Schedule:
    # Floored, so that its slope at the ends is large and not infinite times zero.
    return lambda t: jnp.sqrt(scale * jnp.maximum(t * (1 - t), 0.0))


def _check(scale: float) -> None:
    if scale <= 0:
        raise invalid("interpolant.scale", scale, "scale > 0")


def quadratic_losses(
    interpolant: Interpolant,
    velocity: Field,
    denoiser: Field,
    x0: jax.Array,
    x1: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(loss of b, loss of eta) per example [B], uniform t, z and -z together (their eq. 2.14, 6.2).

    E |b - dx_t/dt|^2 and E |eta - z|^2. The antithetic pair keeps the first one's variance finite
    where gamma's slope is not. velocity, denoiser: fn(x[B, ...], t[B]).
    """
    t = jax.vmap(jax.random.uniform)(fold(keys, PAIR_TIME))
    t = jnp.clip(t, 1e-3, 1 - 1e-3)
    z = normal(fold(keys, PAIR_NOISE), x0.shape[1:], x0.dtype)

    def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = interpolant.mix(x0, x1, z, t)
        gaps = (velocity(x, t) - interpolant.speed(x0, x1, z, t), denoiser(x, t) - z)
        b, eta = ((gap**2).reshape(x.shape[0], -1).mean(1) for gap in gaps)
        return b, eta

    (a, c), (b, d) = both(z), both(-z)
    return (a + b) / 2, (c + d) / 2


def integrate(
    velocity: Field,
    score: Field,
    x: jax.Array,
    keys: jax.Array,
    *,
    steps: int = 100,
    noise: float = 0.0,
    ends: tuple[float, float] = (1.0, 0.0),
) -> jax.Array:
    """From base x [B, ...] at ends[0] to data at ends[1] (their algorithm 2 and 3).

    Backwards in t, dx = (-b + noise s) dt' + sqrt(2 noise) dW, with any noise >= 0: Heun's method
    where noise = 0, Euler-Maruyama otherwise. keys [B].
    """
    if steps < 1 or noise < 0:
        raise invalid("interpolant.steps", (steps, noise), "steps >= 1 and noise >= 0")
    times = jnp.linspace(*ends, steps + 1, dtype=x.dtype)
    h = (ends[0] - ends[1]) / steps

    def step(x: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
        number, t, s = inputs
        slope = -velocity(x, t)
        if noise == 0:
            return x + h / 2 * (slope - velocity(x + h * slope, s)), None
        fresh = normal(fold(keys, number), x.shape[1:], x.dtype)
        return x + h * (slope + noise * score(x, t)) + math.sqrt(2 * noise * h) * fresh, None

    return jax.lax.scan(step, x, (jnp.arange(steps), times[:-1], times[1:]))[0]


def couple(
    x0: np.ndarray, x1: np.ndarray, kind: Literal["independent", "optimal"] = "independent"
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of data x0 [B, ...] and base x1 [B, ...]: as they come, or at least squared distance.

    optimal: the minibatch's optimal transport by linear assignment (Tong et al. 2023; Pooladian et
    al. 2023), on the host, O(B^3). Both laws stay what they are; only their pairing changes.
    """
    if kind == "independent":
        return x0, x1
    if kind != "optimal":
        raise invalid("interpolant.kind", kind, "'independent', 'optimal'")
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x0, x1))
    cost = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    rows, columns = linear_sum_assignment(cost)
    return x0[rows], x1[columns]


def gaussian_bridge(
    interpolant: Interpolant, data: tuple[float, float], base: tuple[float, float]
) -> tuple[Field, Field]:
    """(b, score) in closed form between N(m0, s0^2) and N(m1, s1^2), independently coupled.

    x_t is normal with mean m = alpha m0 + beta m1 and variance v = alpha^2 s0^2 + beta^2 s1^2 +
    gamma^2, so b = m' + v' (x - m) / (2 v) and s = -(x - m) / v (their appendix A). data, base:
    (mean, deviation).
    """
    return coupled_gaussian_bridge(interpolant, data, base, 0.0)


def coupled_gaussian_bridge(
    interpolant: Interpolant,
    data: tuple[float, float],
    base: tuple[float, float],
    correlation: float,
) -> tuple[Field, Field]:
    """`gaussian_bridge` where data and base are drawn together (Albergo et al. 2023b).

    The base may be a spoilt copy of the data, coarser or masked: only the joint distribution
    changes. For a joint normal with correlation c, v gains 2 alpha beta c s0 s1; b and s follow as
    there.

    Raises UsageError unless -1 <= correlation <= 1.
    """
    if not -1 <= correlation <= 1:
        raise invalid("interpolant.correlation", correlation, "-1 to 1")

    def moments(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, beta, gamma = interpolant.alpha(t), interpolant.beta(t), interpolant.gamma(t)
        together = 2 * correlation * alpha * data[1] * beta * base[1]
        variance = (alpha * data[1]) ** 2 + (beta * base[1]) ** 2 + together + gamma**2
        return alpha * data[0] + beta * base[0], variance

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.clip(t, T_MIN, 1 - T_MIN)
        (m, v), (dm, dv) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
        m, v, dm, dv = (expand(a, x) for a in (m, v, dm, dv))
        return dm + dv / (2 * v) * (x - m)

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        m, v = (expand(a, x) for a in moments(t))
        return -(x - m) / v

    return velocity, score
