"""Exact denoisers for data whose law is known: a Gaussian, a Gaussian mixture, a finite set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction


def gaussian_denoiser(path: Path, mean: jax.Array | float = 0.0, std: float = 1.0) -> Denoiser:
    """The exact denoiser of data N(mean, std^2 I).

    E[x0 | x] = mean + alpha std^2 (x - alpha mean) / (alpha^2 std^2 + sigma^2), and eps likewise,
    without a division by sigma.
    """

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
        rest = (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
        return Prediction(mean + alpha * std**2 * rest, sigma * rest), memory

    return Denoiser(call, path=path)


def gaussian_flow(
    path: Path, x: jax.Array, t: jax.Array, s: jax.Array, mean: jax.Array | float, std: float
) -> jax.Array:
    """Where the probability flow takes x at time t to at time s, for data N(mean, std^2 I).

    (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along it.
    """

    def scale(t: jax.Array) -> jax.Array:
        return jnp.sqrt((path.alpha(t) * std) ** 2 + path.sigma(t) ** 2)

    return path.alpha(s) * mean + scale(s) / scale(t) * (x - path.alpha(t) * mean)


def mixture_denoiser(path: Path, means: jax.Array, stds: jax.Array, weights: jax.Array) -> Denoiser:
    """The exact denoiser of the mixture sum_k weights[k] N(means[k], stds[k]^2 I).

    means [K, D], stds [K], weights [K]; x is [B, D]. Also of a finite data set (stds = 0), where
    it is the softmax-weighted mean of the points.
    """

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        alpha = jnp.broadcast_to(path.alpha(t), x.shape[:1])[:, None]
        sigma = jnp.broadcast_to(path.sigma(t), x.shape[:1])[:, None]
        variance = jnp.maximum((alpha * stds) ** 2 + sigma**2, TINY)
        share = responsibilities(path, x, t, means, stds, weights)
        rest = (x[:, None, :] - alpha[..., None] * means) / variance[..., None]
        x0 = means + (alpha * stds**2)[..., None] * rest
        eps = sigma[..., None] * rest
        return Prediction((share[..., None] * x0).sum(1), (share[..., None] * eps).sum(1)), memory

    return Denoiser(call, path=path)


def responsibilities(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """p(component | x_t = x): [B, K], for x [B, D] and t [] or [B]."""
    return jax.nn.softmax(_log_joint(path, x, t, means, stds, weights), axis=-1)


def mixture_log_prob(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """ln p_t(x) of the noised mixture in nats, [B]; at t=0 the data's own density."""
    return jax.nn.logsumexp(_log_joint(path, x, t, means, stds, weights), axis=-1)


def _log_joint(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    alpha = jnp.broadcast_to(path.alpha(t), x.shape[:1])[:, None]
    sigma = jnp.broadcast_to(path.sigma(t), x.shape[:1])[:, None]
    variance = jnp.maximum((alpha * stds) ** 2 + sigma**2, TINY)
    square = ((x[:, None, :] - alpha[..., None] * means) ** 2).sum(-1)
    normal = -0.5 * square / variance - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi * variance)
    return jnp.log(weights) + normal


ASYMMETRIC = (
    np.array([[-1.5, 0.3], [1.0, 1.2], [0.4, -1.1]]),
    np.array([0.35, 0.6, 0.25]),
    np.array([0.5, 0.2, 0.3]),
)
"""means, stds, weights of a mixture in the plane: a symmetric one would hide a wrong sign."""
