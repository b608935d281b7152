"""Gaussian posteriors as (sample from noise, log-density, KL to N(0, I)); pure functions of heads.

A head is what a network says about one layer of latents: a dict of arrays [..., n]. `mean` and
`log_scale` (of each latent's standard deviation without the rank-one part); `direction`, u, where
the precision is diag + u u^T.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Head = dict[str, jax.Array]


def standard(like: jax.Array) -> Head:
    """The head of N(0, I) for latents shaped like an array."""
    return {"mean": jnp.zeros_like(like), "log_scale": jnp.zeros_like(like)}


def sample(head: Head, eps: jax.Array) -> jax.Array:
    """Latents [..., n] from standard normal eps [..., n].

    Of a rank-one precision C^-1 = D + u u^T: mean + R eps with R R^T = C (Rezende et al. 2014,
    eq. 19), in linear time.
    """
    scale = jnp.exp(head["log_scale"])
    if "direction" not in head:
        return head["mean"] + scale * eps
    u, size, eta = _rank_one(head)
    # With v = D^-1/2 u: R = D^-1/2 (I - (1 - sqrt eta) v v^T / |v|^2).
    share = (1 - jnp.sqrt(eta)) / jnp.maximum(size, 1e-30)
    along = (u * eps).sum(-1, keepdims=True)
    return head["mean"] + scale * (eps - share * along * u)


def log_density(head: Head, z: jax.Array) -> jax.Array:
    """ln N(z; head) in nats [...]."""
    scaled = (z - head["mean"]) * jnp.exp(-head["log_scale"])
    square = (scaled**2).sum(-1)
    if "direction" in head:
        u, _, _ = _rank_one(head)
        square = square + (scaled * u).sum(-1) ** 2
    size = z.shape[-1]
    return -0.5 * (square + size * math.log(2 * math.pi)) - 0.5 * log_determinant(head)


def log_determinant(head: Head) -> jax.Array:
    """ln |C| of the covariance [...]."""
    total = 2 * head["log_scale"].sum(-1)
    if "direction" not in head:
        return total
    _, _, eta = _rank_one(head)
    return total + jnp.log(eta[..., 0])


def kl_to_standard(head: Head) -> jax.Array:
    """KL(N(head) || N(0, I)) in nats [...]."""
    variance = jnp.exp(2 * head["log_scale"])
    if "direction" in head:
        u, _, eta = _rank_one(head)
        variance = variance * (1 - eta * u**2)
    trace = variance.sum(-1)
    size = head["mean"].shape[-1]
    return 0.5 * (trace + (head["mean"] ** 2).sum(-1) - size - log_determinant(head))


def _rank_one(head: Head) -> tuple[jax.Array, jax.Array, jax.Array]:
    """v = D^-1/2 u [..., n], |v|^2 [..., 1] and eta = 1 / (1 + |v|^2) [..., 1]."""
    v = jnp.exp(head["log_scale"]) * head["direction"]
    size = (v**2).sum(-1, keepdims=True)
    return v, size, 1 / (1 + size)
