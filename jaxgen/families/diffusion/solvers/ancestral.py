"""DDPM's ancestral sampler and DDIM, for any path."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.solvers.base import Carry, Solver, gaussian, predict

SMALLEST_STEP = 1e-3
"""Where s = 0 the posterior variance is 0; its logarithm is taken at this time instead."""


def posterior(
    path: Path, t: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """q(x_s | x_t, x0) as (weight of x_t, weight of x0, variance, and the larger sigma^2_{t|s}).

    Kingma et al. 2021, appendix A.2: weights alpha_{t|s} sigma_s^2 / sigma_t^2 and
    alpha_s sigma^2_{t|s} / sigma_t^2, variance sigma^2_{t|s} sigma_s^2 / sigma_t^2. In DDPM's words
    the last two are beta-tilde and beta.
    """
    ratio, large = path.transition(t, s)
    square = jnp.maximum(path.sigma(t) ** 2, TINY)
    share = path.sigma(s) ** 2 / square
    return ratio * share, path.alpha(s) * large / square, large * share, large


def log_variance(logits: jax.Array, path: Path, t: jax.Array, s: jax.Array) -> jax.Array:
    """The learned reverse variance's logarithm (Nichol & Dhariwal 2021, eq. 15).

    logits in [-1, 1] interpolate ln beta-tilde and ln beta. At s=0, where beta-tilde is 0, it is
    taken one small step higher, as theirs is.
    """
    *_, small, large = posterior(path, t, jnp.maximum(s, jnp.minimum(SMALLEST_STEP, t / 2)))
    low, high = jnp.log(jnp.maximum(small, TINY)), jnp.log(jnp.maximum(large, TINY))
    shape = low.shape + (1,) * (logits.ndim - low.ndim) if low.ndim else ()
    low, high = low.reshape(shape), high.reshape(shape)
    return low + (logits + 1) / 2 * (high - low)


def ddpm(path: Path, variance: Literal["learned", "small", "large"] = "learned") -> Solver:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), one call a step.

    variance: small (beta-tilde), large (beta), or the network's own where it predicts one, else
    small. No noise is added in the step to t=0.
    """
    if variance not in ("learned", "small", "large"):
        raise invalid("solver.variance", variance, "'learned', 'small', 'large'")

    def moments(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        on_x, on_x0, small, large = posterior(path, t, s)
        if variance == "learned" and p.variance is not None:
            std = jnp.exp(0.5 * log_variance(p.variance, path, t, s))
        else:
            std = jnp.sqrt(large if variance == "large" else small)
        return on_x * x + on_x0 * p.x0, jnp.where(s > 0, std, 0.0), (carry[0], memory)

    return gaussian(moments)


def ddim(path: Path, eta: float = 0.0) -> Solver:
    """DDIM (Song et al. 2021, eq. 12 and 16), one call a step.

    eta: 0 deterministic, 1 the ancestral sampler with the small variance.
    """
    if not 0 <= eta <= 1:
        raise invalid("solver.eta", eta, "0 <= eta <= 1")

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        return p.mix(path, s), (carry[0], memory)

    def moments(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, Carry]:
        p, memory = predict(denoiser, x, t, carry[1], keys)
        variance = eta**2 * posterior(path, t, s)[2]
        direction = jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - variance, 0.0))
        mean = path.alpha(s) * p.x0 + direction * p.eps
        return mean, jnp.sqrt(variance), (carry[0], memory)

    return gaussian(moments) if eta else Solver(step=step, order=1)
