"""Reverse-time SDEs: Euler-Maruyama, and predictor-corrector with Langevin steps.

Every SDE dx = (v - w s / 2) dt backwards with noise sqrt(w) dW has the flow's marginals, for any
w(t) >= 0 (Song et al. 2021, appendix D; Karras et al. 2022, eq. 6; Ma et al. 2024, eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid, unknown
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import ALPHA_MIN, SIGMA_MIN
from jaxgen.families.diffusion.solvers.ancestral import ddim
from jaxgen.families.diffusion.solvers.base import Carry, Solver, gaussian, predict
from jaxgen.method import fold, normal
from jaxgen.method.streams import CALL, NOISE

CORRECTIONS = 2
"""A step's first stream of its corrections, one each."""

FORMS: dict[str, Callable[[Path, jax.Array, float], jax.Array]] = {
    "constant": lambda path, t, norm: norm * jnp.ones_like(t),
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * t,
    "decreasing": lambda path, t, norm: 0.25 * (1 - norm * jnp.cos(jnp.pi * t)) ** 2,
    "increasing_decreasing": lambda path, t, norm: norm * jnp.sin(jnp.pi * t) ** 2,
}
"""w / 2 of SiT's forms (Ma et al. 2024, and their code) in our time, which is 1 - theirs."""


def euler_maruyama(
    path: Path,
    noise: float = 1.0,
    power: float = 1.0,
    form: str = "sbdm",
    last: Literal["flow", "mean"] = "flow",
) -> Solver:
    """Euler-Maruyama on the reverse SDE with noise sqrt(w(t)) dW, one call a step.

    form: "sbdm" is w = noise alpha^power g(t)^2, where g^2 = 2 sigma (sigma' - sigma alpha' /
    alpha) is the forward SDE's own (power = 0: Song et al., eq. 6); it is infinite at t=1 where
    alpha is 0, so the default weighs it by alpha: the same for VE and EDM, and 2 t on the linear
    path. The others are SiT's, w = 2 `FORMS`[form], noise being their norm: "sigma" is that of its
    published samples. noise = 0 is the ODE, but for "decreasing", which then is 1/4. last: the step
    to t=0 is the flow's ("flow", which lands on the estimate of x0) or the SDE's without its noise
    ("mean", SiT's, from t=.04: `grids.uniform` with last=.04).
    """
    if noise < 0 or power < 0:
        raise invalid("solver.noise", (noise, power), "noise >= 0 and power >= 0")
    if form != "sbdm" and form not in FORMS:
        raise unknown("solver.form", form, ("sbdm", *FORMS))
    if form != "sbdm" and power != 1:
        raise invalid("solver.power", power, f"left out with form={form!r}: it is sbdm's")
    if last not in ("flow", "mean"):
        raise invalid("solver.last", last, "'flow', 'mean'")

    def rate_at(t: jax.Array) -> jax.Array:
        """w / sigma."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        if form != "sbdm":
            return 2 * FORMS[form](path, t, noise) / jnp.maximum(sigma, SIGMA_MIN)
        # alpha g^2 = 2 sigma (alpha sigma' - sigma alpha').
        rate = 2 * noise * (alpha * path.d_sigma(t) - sigma * path.d_alpha(t))
        return rate * jnp.maximum(alpha, ALPHA_MIN) ** (power - 1)

    def moments(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        rate, h = rate_at(t), t - s
        # The flow's share is taken exactly (DDIM); the SDE's on top of it: w s / 2 = -rate eps / 2.
        mean = p.mix(path, s) - 0.5 * rate * h * p.eps
        std = jnp.where(s > 0, jnp.sqrt(rate * path.sigma(t) * h), 0.0)
        end = p.mix(path, s) if last == "flow" else mean
        return jnp.where(s > 0, mean, end), std, (carry[0], memory)

    return gaussian(moments)


def predictor_corrector(path: Path, snr: float = 0.16, corrections: int = 1) -> Solver:
    """An ancestral predictor, then Langevin steps at the new level (Song et al. 2021, algorithm 1).

    corrections: Langevin steps after each predictor step, a call each; none at t=0. snr: their r;
    the step size is 2 (r sigma)^2, algorithm 4's with the norms of noise and score replaced by
    their expectations sqrt(d) and sqrt(d) / sigma, so that it does not depend on the batch. The
    distribution is exact as both the number of steps and 1 / snr grow.
    """
    if snr <= 0 or corrections < 1:
        raise invalid("solver.snr", (snr, corrections), "snr > 0 and corrections >= 1")
    predictor = ddim(path, eta=1.0)

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        x, (history, memory) = predictor.step(denoiser, x, t, s, carry, keys)
        sigma = path.sigma(s)
        size = 2 * (snr * sigma) ** 2

        def langevin(state: Any, number: jax.Array) -> tuple[Any, None]:
            x, memory = state
            corrector_keys = fold(keys, CORRECTIONS + number)
            p, memory = denoiser(fold(corrector_keys, CALL), x, s, memory)
            fresh = normal(fold(corrector_keys, NOISE), x.shape[1:], x.dtype)
            # score = -eps / sigma.
            return (x - size / sigma * p.eps + jnp.sqrt(2 * size) * fresh, memory), None

        def correct(state: Any) -> Any:
            return jax.lax.scan(langevin, state, jnp.arange(corrections))[0]

        x, memory = jax.lax.cond(s > 0, correct, lambda state: state, (x, memory))
        return x, (history, memory)

    def times(number: int, t: np.ndarray, s: np.ndarray) -> list[float]:
        return [float(t)] + [float(s)] * (corrections if s > 0 else 0)

    return Solver(step=step, order=0, stochastic=True, times=times)
