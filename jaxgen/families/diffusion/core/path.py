"""Paths from data to noise: x_t = alpha(t) x + sigma(t) eps, t=0 data, t=1 noise.

A path is three functions: alpha, sigma, and the inverse of their ratio. Everything else (log-SNR,
derivatives, transition kernels) follows. Times are float arrays of any shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.interpolate

from jaxgen.errors import invalid, unknown

Schedule = Callable[[jax.Array], jax.Array]

T_MIN = 1e-6
"""Times are kept this far from both ends where a quantity is infinite there."""

TINY = 1e-12
"""Floor of a divisor that is a product of sigmas: below any such product at t >= T_MIN."""


def expand(a: jax.Array, like: jax.Array) -> jax.Array:
    """A per-example array [B] (or a scalar) with trailing axes of 1, to multiply `like`."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if a.ndim else a


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """A Gaussian path. alpha(0) = 1 and sigma(0) = 0; alpha falls, sigma / alpha grows.

    ratio_inverse: t at which sigma / alpha has a given value in [0, inf].
    ratio_min, ratio_max: the range of sigma / alpha that grids and time samplers in those units
    use by default (EDM's sigma_min and sigma_max). levels: how many noise levels it is made of,
    where it is made of such (`discrete`), numbered from 0, the least noise. index, index_inverse:
    the level at a time, which networks on such a path are told in place of the time, and back.
    """

    alpha: Schedule
    sigma: Schedule
    ratio_inverse: Schedule
    ratio_min: float = 0.002
    ratio_max: float = 80.0
    levels: int | None = None
    index: Schedule | None = None
    index_inverse: Schedule | None = None

    def ratio(self, t: jax.Array) -> jax.Array:
        """sigma / alpha, EDM's noise level; infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def t_of_sigma(self, ratio: jax.Array) -> jax.Array:
        """The time in [0, 1] at which sigma / alpha is `ratio`, the nearest end where none is."""
        return jnp.clip(self.ratio_inverse(ratio), 0.0, 1.0)

    def log_snr(self, t: jax.Array) -> jax.Array:
        """ln(alpha^2 / sigma^2), strictly falling; infinite where alpha or sigma is 0."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def t_of_log_snr(self, log_snr: jax.Array) -> jax.Array:
        """The time in [0, 1] at which the log-SNR has a value."""
        return self.t_of_sigma(jnp.exp(-log_snr / 2))

    def told(self, t: jax.Array) -> jax.Array:
        """What networks on this path are told at t: t, or the index of its noise level."""
        return t if self.index is None else self.index(t)

    def level_time(self, index: jax.Array, levels: int) -> jax.Array:
        """The time of noise level `index` of `levels`: (index + 1) / levels, or the path's own."""
        if self.index_inverse is not None:
            return self.index_inverse(index)
        return (index + 1) / levels

    def d_alpha(self, t: jax.Array) -> jax.Array:
        """d alpha / dt; at the ends its value T_MIN inside, so that it is finite."""
        return _derivative(self.alpha, t)

    def d_sigma(self, t: jax.Array) -> jax.Array:
        """d sigma / dt; at the ends its value T_MIN inside: VP's and VE's diverge at t=0."""
        return _derivative(self.sigma, t)

    def fraction(self, t: jax.Array) -> jax.Array:
        """sigma / (alpha + sigma), the same point's time on the linear path.

        x / (alpha + sigma) moves on the straight line from x0 to eps as this runs from 0 to 1, for
        every path: the coordinate in which fields are finite and smooth at both ends.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        return sigma / (alpha + sigma)

    def t_of_fraction(self, fraction: jax.Array) -> jax.Array:
        """The inverse of `fraction`."""
        return self.t_of_sigma(fraction / (1 - fraction))

    def mix(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t = alpha x0 + sigma eps for x0, eps [B, ...] and t [] or [B]."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def transition(self, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha_{t|s}, sigma^2_{t|s}) of q(x_t | x_s), s < t (Kingma et al. 2021, eq. 20-21).

        Multiplied out so that alpha_t = 0 does no harm: both are finite for every s < 1.
        """
        ratio = self.alpha(t) / jnp.maximum(self.alpha(s), TINY)
        variance = self.sigma(t) ** 2 - ratio**2 * self.sigma(s) ** 2
        return ratio, jnp.maximum(variance, 0.0)


def _derivative(f: Schedule, t: jax.Array) -> jax.Array:
    t = jnp.clip(t, T_MIN, 1 - T_MIN)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def linear() -> Path:
    """Rectified flow and flow matching: alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman 2022)."""
    return Path(
        alpha=lambda t: 1 - t, sigma=lambda t: t * 1.0, ratio_inverse=lambda r: 1 / (1 + 1 / r)
    )


def trig() -> Path:
    """Trigonometric VP path: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Albergo & Vanden-Eijnden (2022); Lu & Song (2024), TrigFlow, with their time times 2 / pi.
    """
    half = math.pi / 2
    return Path(
        # sin of the complement: exactly 0 at t=1, where cos in float32 is -4e-8.
        alpha=lambda t: jnp.sin(half * (1 - t)),
        sigma=lambda t: jnp.sin(half * t),
        ratio_inverse=lambda r: jnp.arctan(r) / half,
    )


def cosine(offset: float = 0.008) -> Path:
    """Nichol & Dhariwal's cosine schedule (2021, eq. 17): alpha = cos(a(t)) / cos(a(0)).

    a(t) = (t + offset) / (1 + offset) pi / 2. offset: keeps the first betas from vanishing.
    """
    if not 0 <= offset < 1:
        raise invalid("path.offset", offset, "0 <= offset < 1")
    half = math.pi / 2
    scale = 1 / math.cos(half * offset / (1 + offset))

    def alpha(t: jax.Array) -> jax.Array:
        return jnp.minimum(scale * jnp.sin(half * (1 - t) / (1 + offset)), 1.0)

    def sigma(t: jax.Array) -> jax.Array:
        # 1 - alpha^2 as sin(a - a0) sin(a + a0) / cos^2(a0): no cancellation at small t.
        a = half * (t + offset) / (1 + offset)
        a0 = half * offset / (1 + offset)
        return scale * jnp.sqrt(jnp.sin(half * t / (1 + offset)) * jnp.sin(a + a0))

    def ratio_inverse(r: jax.Array) -> jax.Array:
        # alpha = 1 / sqrt(1 + r^2) = scale cos(a).
        a = jnp.arccos(jnp.clip(1 / (scale * jnp.sqrt(1 + r * r)), 0.0, 1.0))
        return a / half * (1 + offset) - offset

    return Path(alpha=alpha, sigma=sigma, ratio_inverse=ratio_inverse)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """VP SDE with beta(t) linear in t (Song et al. 2021, eq. 33; DDPM's betas in the limit).

    alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B = beta_min t + (beta_max - beta_min) t^2 / 2.
    """
    if not 0 < beta_min <= beta_max:
        raise invalid("path.beta_min", (beta_min, beta_max), "0 < beta_min <= beta_max")
    slope = beta_max - beta_min

    def integral(t: jax.Array) -> jax.Array:
        return beta_min * t + 0.5 * slope * t * t

    def ratio_inverse(r: jax.Array) -> jax.Array:
        b = jnp.log1p(r * r)
        return 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * slope * b))

    return Path(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        ratio_inverse=ratio_inverse,
    )


BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": lambda n, low, high: np.linspace(low, high, n),
    "scaled_linear": lambda n, low, high: np.linspace(low**0.5, high**0.5, n) ** 2,
    "cosine": lambda n, low, high: _cosine_betas(n),
}


def discrete(
    betas: str | Sequence[float] = "linear",
    levels: int = 1000,
    beta_min: float = 1e-4,
    beta_max: float = 0.02,
) -> Path:
    """DDPM's chain of noise levels (Ho et al. 2020, sec. 2), whose networks are told the index.

    Level i = 0 .. levels - 1 lies at t = (i + 1) / levels and has alpha^2 = (1 - beta_0) .. (1 -
    beta_i), as in DDPM, ADM and DiT; between two levels -2 ln alpha is a monotone cubic in t
    (Fritsch & Butland 1984), so that solvers of any order can be used, and t=0 is the data.
    Networks are told i, a number from 0 to levels - 1 (i + 1 - levels t is rounded off), so their
    `time_scale` is to be 1. betas: "linear" from beta_min to beta_max (DDPM, DiT), "scaled_linear",
    their roots are (Rombach et al. 2022), "cosine", at most .999 (Nichol & Dhariwal 2021, eq. 17),
    or the numbers themselves. Raises UsageError for betas outside of (0, 1).
    """
    if isinstance(betas, str):
        if betas not in BETAS:
            raise unknown("path.betas", betas, BETAS)
        if levels < 2:
            raise invalid("path.levels", levels, "levels >= 2")
        values = BETAS[betas](levels, beta_min, beta_max)
    else:
        values = np.asarray(betas, np.float64)
    if values.ndim != 1 or len(values) < 2 or not ((values > 0) & (values < 1)).all():
        given = (beta_min, beta_max) if isinstance(betas, str) else betas
        raise invalid("path.betas", given, "two or more numbers, each 0 < beta < 1")
    count = len(values)
    # -2 ln alpha at t = 0, 1 / count, .., 1, and cubics [4, count] between, highest power first.
    table = np.concatenate([[0.0], np.cumsum(-np.log1p(-values))])
    cubics = scipy.interpolate.PchipInterpolator(np.arange(count + 1), table).c

    def piece(number: jax.Array, dtype: Any) -> jax.Array:
        return jnp.asarray(cubics, dtype)[:, number]

    def integral(t: jax.Array) -> jax.Array:
        place = jnp.clip(t, 0.0, 1.0) * count
        number = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, count - 1)
        return jnp.polyval(piece(number, place.dtype), place - number)

    def ratio_inverse(r: jax.Array) -> jax.Array:
        wanted = jnp.minimum(jnp.log1p(r * r), table[-1])
        known = jnp.asarray(table, wanted.dtype)
        number = jnp.clip(jnp.searchsorted(known, wanted, side="right") - 1, 0, count - 1)
        cubic = piece(number, wanted.dtype)
        u = (wanted - known[number]) / (known[number + 1] - known[number])
        for _ in range(3):  # Newton's method on a monotone cubic, from its chord
            slope = 3 * cubic[0] * u**2 + 2 * cubic[1] * u + cubic[2]
            u = jnp.clip(u - (jnp.polyval(cubic, u) - wanted) / slope, 0.0, 1.0)
        return (number + u) / count

    def index(t: jax.Array) -> jax.Array:
        exact = t * count - 1
        near = jnp.round(exact)
        # What float32 leaves of i + 1 over count, times count, is no level of its own.
        return jnp.where(jnp.abs(exact - near) < 2e-6 * count, near, exact)

    return Path(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        ratio_inverse=ratio_inverse,
        ratio_min=math.sqrt(math.expm1(table[1])),
        ratio_max=math.sqrt(math.expm1(table[-1])),
        levels=count,
        index=index,
        index_inverse=lambda i: (i + 1) / count,
    )


def _cosine_betas(levels: int) -> np.ndarray:
    bar = np.cos((np.arange(levels + 1) / levels + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Path:
    """VE SDE (Song et al. 2021, eq. 30-31): dx = sigma_min r^t sqrt(2 ln r) dw, r = max / min.

    alpha = 1, sigma^2 = sigma_min^2 (r^(2t) - 1): the SDE's exact marginal from clean data, which
    is 0 at t=0 where the paper's own geometric schedule jumps to sigma_min.
    """
    if not 0 < sigma_min < sigma_max:
        raise invalid("path.sigma_min", (sigma_min, sigma_max), "0 < sigma_min < sigma_max")
    rate = 2 * math.log(sigma_max / sigma_min)
    return Path(
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_min * jnp.sqrt(jnp.expm1(rate * t)),
        ratio_inverse=lambda r: jnp.log1p((r / sigma_min) ** 2) / rate,
        ratio_min=sigma_min,
        ratio_max=sigma_max,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Path:
    """EDM's path (Karras et al. 2022, table 1): alpha = 1, sigma = sigma_max t.

    The paper's time is sigma itself; ours is sigma / sigma_max. sigma_min is where Karras' grid
    ends before its last step to 0.
    """
    if not 0 < sigma_min < sigma_max:
        raise invalid("path.sigma_min", (sigma_min, sigma_max), "0 < sigma_min < sigma_max")
    return Path(
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_max * t,
        ratio_inverse=lambda r: r / sigma_max,
        ratio_min=sigma_min,
        ratio_max=sigma_max,
    )


def shift(path: Path, factor: float = 1.0) -> Path:
    """Resolution shift: the same path with its noise reached earlier (or later).

    At time t the new path is where the old one is at factor t / (1 + (factor - 1) t) (Esser et al.
    2024, eq. 23; factor = sqrt(m / n) for n -> m pixels; factor > 1: more noise). On the linear
    path sigma / alpha is multiplied by `factor` at every t.
    """
    if factor <= 0:
        raise invalid("path.factor", factor, "factor > 0")

    def later(t: jax.Array) -> jax.Array:
        return factor * t / (1 + (factor - 1) * t)

    def earlier(t: jax.Array) -> jax.Array:
        return t / (factor - (factor - 1) * t)

    index, inverse = path.index, path.index_inverse
    return dataclasses.replace(
        path,
        alpha=lambda t: path.alpha(later(t)),
        sigma=lambda t: path.sigma(later(t)),
        ratio_inverse=lambda r: earlier(path.ratio_inverse(r)),
        index=None if index is None else lambda t: index(later(t)),
        index_inverse=None if inverse is None else lambda i: earlier(inverse(i)),
    )
