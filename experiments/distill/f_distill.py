"""f-distill: the gradient of each divergence in closed form, by weights of one score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, control, near
from jaxgen.distill.divergence import WEIGHTS, weight
from jaxgen.distill.matching import matched

PAPER = "One-step Diffusion Models with f-Divergence Distribution Matching"
ENTRY = "jaxgen.distill.divergence.weight"
MEAN, STD = 1.0, 0.7
SHARP = ("reverse_kl",)
# D_f(p || N(theta, 1)) of p = N(1, .7^2), d / dtheta at 0: quadrature in float64 of f itself.
F = dict(
    reverse_kl=lambda r: -np.log(r),
    forward_kl=lambda r: r * np.log(r),
    jensen_shannon=lambda r: r * np.log(r) - (1 + r) * np.log((1 + r) / 2),
    softened_reverse_kl=lambda r: (1 + r) * np.log((1 + r) / (2 * r)),
    squared_hellinger=lambda r: 2 * (1 - np.sqrt(r)),
    jeffreys=lambda r: (r - 1) * np.log(r),
)


def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    """The density of N(mean, std^2)."""
    return np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))


def divergence(name: str, theta: float) -> float:
    """E_q f(p / q), q = N(theta, 1), on a fine grid."""
    x = np.linspace(-9.0, 9.0, 200_001)
    p, q = normal(x, MEAN, STD), normal(x, theta, 1.0)
    return float((q * F[name](p / q)).sum() * (x[1] - x[0]))


def pulled(name: str, *, weighted: bool = True) -> float:
    """The gradient in theta that the distilled loss has, its expectation by Gauss-Hermite."""
    x, shares = (jnp.asarray(a) for a in np.polynomial.hermite_e.hermegauss(60))
    log_ratio = jax.scipy.stats.norm.logpdf(x, MEAN, STD) - jax.scipy.stats.norm.logpdf(x)
    h = weight(name, log_ratio, normalised=False) if weighted else jnp.ones_like(x)
    scores = (-(x - MEAN) / STD**2 + x)[:, None]

    def loss(theta: jax.Array) -> jax.Array:
        each = matched((theta + x)[:, None], scores, jnp.ones_like(x), h)
        return (shares * each).sum() / shares.sum()

    return float(jax.grad(loss)(jnp.float32(0)))


def checks() -> list[Check]:
    """Against finite differences of the divergence itself; unweighted, only the reverse KL's is."""
    results = []
    for name in WEIGHTS:
        exact = (divergence(name, 1e-3) - divergence(name, -1e-3)) / 2e-3
        check = f"gradient of the {name.replace('_', ' ')}"
        results.append(near(check, pulled(name), exact, 3e-4))
        if name not in SHARP:
            plain = near(f"{check}, unweighted", pulled(name, weighted=False), exact, 3e-4)
            results.append(control(plain))
    return results
