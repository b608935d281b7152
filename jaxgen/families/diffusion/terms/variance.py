"""The variational bound that trains a learned variance (Nichol & Dhariwal 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.families.diffusion.solvers.ancestral import log_variance, posterior
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term, example_mean

VLB_STEPS = 1000
"""The step t -> t - 1 / VLB_STEPS whose variance is learned, DDPM's number of steps, on paths that
have no noise levels of their own; on those, the step to the level before."""


def variance() -> Term:
    """`variance_bound` of a network with a learned variance; the mean gets no gradient from it."""

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        assert noised.variance is not None
        out = jax.lax.stop_gradient(noised.output)
        return variance_bound(noised.network, out, noised.variance, noised.x0, noised.x, noised.t)

    return Term(name="variance_bound", of=of)


def variance_bound(
    network: Network, out: jax.Array, variance: jax.Array, x0: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) in bits per dimension, [B], s one of `VLB_STEPS` before.

    The L_vlb of Nichol & Dhariwal (2021, eq. 15-17) that trains the variance alone (`out` has no
    gradient). With 1000 steps its weight 1 is their lambda = 0.001 on the sum over steps, as in ADM
    and DiT. At s = 0 the KL against the step's own smallest variance stands for their decoder term.
    """
    path = network.path
    if path.index is None:
        s = jnp.maximum(t - 1 / VLB_STEPS, 0.0)
    else:
        s = jnp.maximum(path.level_time(path.index(t) - 1, VLB_STEPS), 0.0)
    p = to_prediction(network.kind, out, x, t, path, sigma_data=network.sigma_data)
    _, on_x0, _, _ = posterior(path, t, s)
    true = log_variance(jnp.full_like(x, -1.0), path, t, s)
    model = log_variance(variance, path, t, s)
    gap = on_x0.reshape(-1, *(1,) * (x.ndim - 1)) * (x0 - p.x0)
    kl = 0.5 * (model - true + jnp.exp(true - model) + gap**2 * jnp.exp(-model) - 1)
    return example_mean(kl) / jnp.log(2.0)
