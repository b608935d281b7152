"""IWAE: the bound rises with the number of draws to ln p(x), here known, whatever q is.

z ~ N(0, 1), x | z ~ N(1.5 z, 0.8^2), with a wrong q(z | x) = N(0.2 x + 0.3, 0.6^2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from experiments.shared.check import Check, above, below, control
from jaxgen.families.variational import posterior
from jaxgen.families.variational.bounds import (
    doubly_reparameterised,
    importance_bound,
    normalised_weights,
)

PAPER = "Importance Weighted Autoencoders"
ENTRY = "jaxgen.families.variational.bounds.importance_bound"
GAIN, NOISE = 1.5, 0.8
COUNT = 20_000


def log_joint(x: jax.Array, z: jax.Array, gain: jax.Array | float = GAIN) -> jax.Array:
    """ln p(x, z), z [..., 1], x [...]."""
    prior = posterior.log_density(posterior.standard(z), z)
    return prior + jax.scipy.stats.norm.logpdf(x, gain * z[..., 0], NOISE)


def head(x: jax.Array, slope: jax.Array | float = 0.2) -> posterior.Head:
    """The wrong q(z | x)."""
    return {
        "mean": (slope * x + 0.3)[..., None],
        "log_scale": jnp.full((*x.shape, 1), jnp.log(0.6)),
    }


def weights(x: jax.Array, k: int, key: jax.Array, slope: jax.Array | float = 0.2) -> jax.Array:
    """ln w [k, N]."""
    q = head(x, slope)
    z = posterior.sample(q, jax.random.normal(key, (k, *x.shape, 1)))
    return log_joint(x, z) - posterior.log_density(q, z)


def gradients(doubly: bool, k: int, repeats: int) -> np.ndarray:
    """d L_k / d slope of q at x = 1.2, one estimate a repeat."""
    x = jnp.array([1.2])

    def bound(slope: jax.Array, key: jax.Array) -> jax.Array:
        log_w = weights(x, k, key, slope)
        if not doubly:
            return importance_bound(log_w)[0]
        z = posterior.sample(head(x, slope), jax.random.normal(key, (k, 1, 1)))
        held = head(x, jax.lax.stop_gradient(slope))
        of_z = log_joint(x, z) - posterior.log_density(held, z)
        joint = log_joint(x, jax.lax.stop_gradient(z))
        return doubly_reparameterised(log_w, joint, of_z)[0]

    keys = jax.random.split(jax.random.key(7), repeats)
    return np.asarray(jax.jit(jax.vmap(jax.grad(bound), (None, 0)))(jnp.float32(0.2), keys))


def checks() -> list[Check]:
    """Order of the bounds, the end of the gap, and averaging bounds instead of weights."""
    std = (GAIN**2 + NOISE**2) ** 0.5
    x = std * jax.random.normal(jax.random.key(0), (COUNT,))
    exact = norm(0, std).logpdf(np.asarray(x))
    gaps, errors = {}, {}
    for k in (1, 5, 50, 200):
        bounds = np.asarray(importance_bound(weights(x, k, jax.random.key(k))))
        gaps[k] = exact.mean() - bounds.mean()
        errors[k] = (bounds - exact).std() / COUNT**0.5
    averaged = np.asarray(weights(x, 50, jax.random.key(1)).mean(0))
    unmoved = exact.mean() - averaged.mean()
    spread = 4 * (errors[1] + (averaged - exact).std() / COUNT**0.5)
    shares = np.asarray(normalised_weights(weights(x[:100], 50, jax.random.key(2)))).sum(0)
    plain, double = gradients(False, 64, 4_000), gradients(True, 64, 4_000)
    both = ((plain.var() + double.var()) / 4_000) ** 0.5
    return [
        above("L_5 - L_1, in standard errors", (gaps[1] - gaps[5]) / errors[1], 10),
        above("L_50 - L_5, in standard errors", (gaps[5] - gaps[50]) / errors[5], 10),
        above("ln p - L_50, in standard errors", gaps[50] / errors[50], -4),
        below("ln p - L_200 beside ln p - L_1", gaps[200] / gaps[1], 0.05),
        below("averaging 50 bounds gains nothing", abs(unmoved - gaps[1]), spread),
        control(
            above("L_50 - L_1 by averaging bounds, in standard errors",
                  (gaps[1] - unmoved) / errors[1], 10)
        ),
        below("weights sum to 1", np.abs(shares - 1).max(), 1e-5),
        below("doubly reparameterised: bias in standard errors",
              abs(plain.mean() - double.mean()) / both, 4),
        below("doubly reparameterised: variance beside the usual", double.var() / plain.var(), 0.5),
        control(below("the usual beside it", gradients(False, 64, 2_000).var() / plain.var(), 0.5)),
    ]  # fmt: skip
