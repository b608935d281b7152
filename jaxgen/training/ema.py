"""Running averages of parameters: half-life in images, and power functions with post-hoc lengths.

Half-life EMA: decay 0.5^(batch / half-life), the half-life ramped up as a share of the images seen
(Karras et al. 2022, EDM, appendix F.2). Power-function EMA: weights t^gamma, so its length is a
share of the whole run, and from snapshots of two of them an average of any length can be made after
training (Karras et al. 2024, EDM2, section 3 and algorithm 3).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.method import is_constant

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Averages:
    """Several averages at once; a name for each (`half_life_50000`, `std_0.050`).

    half_life: half-lives in images seen. ramp: the half-life in force is at most `ramp` times the
    images seen (None: no ramp-up). power_std: relative standard deviations of power functions.
    """

    half_life: tuple[int, ...] = ()
    ramp: float | None = 0.05
    power_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.half_life and not self.power_std:
            raise invalid("config.ema", "nothing", "at least one half_life or power_std")
        if any(h <= 0 for h in self.half_life):
            raise invalid("config.ema.half_life", self.half_life, "images > 0")
        for std in self.power_std:
            power_gamma(std)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the config's order; the first is what sampling uses by default."""
        return tuple(f"half_life_{h}" for h in self.half_life) + tuple(
            power_name(s) for s in self.power_std
        )

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """Fresh averages, equal to the parameters (copies, so that buffers can be donated)."""
        return {name: jax.tree.map(jnp.copy, params) for name in self.names}

    def update(
        self, averages: Mapping[str, PyTree], params: PyTree, step: jax.Array, batch_size: int
    ) -> dict[str, PyTree]:
        """Averages after update number `step` (1 for the first); float32 throughout."""
        step = step.astype(jnp.float32)
        decays = {}
        for half_life in self.half_life:
            length = jnp.float32(half_life)
            if self.ramp is not None:
                length = jnp.minimum(length, step * batch_size * self.ramp)
            decays[f"half_life_{half_life}"] = 0.5 ** (batch_size / jnp.maximum(length, 1e-8))
        for std in self.power_std:
            decays[power_name(std)] = (1 - 1 / step) ** (power_gamma(std) + 1)

        def average(decay: jax.Array, path: tuple[Any, ...], a: jax.Array, p: jax.Array) -> Any:
            return p if is_constant(path) else decay * a + (1 - decay) * p

        return {
            name: jax.tree_util.tree_map_with_path(
                functools.partial(average, decay), averages[name], params
            )
            for name, decay in decays.items()
        }


def power_name(std: float) -> str:
    """The name of the power-function average of relative standard deviation `std`."""
    return f"std_{std:.3f}"


def power_gamma(std: float) -> float:
    """Exponent gamma of the power function whose relative standard deviation is `std`.

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the variance of the density (gamma + 1)
    t^gamma on [0, 1] (EDM2, eq. 126). Raises UsageError outside (0, 0.2887): gamma > 0.
    """
    if not 0 < std < 12**-0.5:
        raise invalid("config.ema.power_std", std, "0 < std < 0.2887 (a uniform average)")
    inverse = std**-2
    # (g + 2)^2 (g + 3) - (g + 1) / std^2 = 0; the largest root is the peaked profile.
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(r.real for r in roots if abs(r.imag) < 1e-9))


def profile_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """Inner product of power profiles p(t) = (gamma + 1) t^gamma / t_end^(gamma + 1) on [0, t_end].

    Integral over [0, min(t_a, t_b)], float64, broadcasting; ratios first, so nothing overflows.
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b))
    m = np.minimum(t_a, t_b)
    scale = (m / t_a) ** gamma_a * (m / t_b) ** gamma_b * m / (t_a * t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * scale


def posthoc_weights(
    times: Sequence[float], stds: Sequence[float], *, time: float, std: float
) -> np.ndarray:
    """Weights of snapshots whose sum is closest to the power average of length `std` at `time`.

    times[i], stds[i]: when snapshot i was taken (images or steps, any unit) and the relative
    standard deviation of the average that it is of. Least squares on the profiles (EDM2,
    algorithm 3), in float64, then divided by their sum, as the paper's code does: an average of
    equal parameters is these parameters. Returns weights [N] that sum to one (they need not be
    positive). UsageError where `time` is so long before the snapshots that none has a share in it.
    """
    t, g = np.asarray(times, np.float64), np.array([power_gamma(s) for s in stds])
    gram = profile_product(t[:, None], g[:, None], t[None, :], g[None, :])
    goal = profile_product(t, g, time, power_gamma(std))
    weights = np.linalg.lstsq(gram, goal, rcond=None)[0]
    total = weights.sum()
    if not 0.5 < total < 2:
        raise invalid("std", std, f"lengths near those of the snapshots, {sorted(set(stds))}")
    return weights / total
