"""Bounds on ln p(x) from log importance weights ln w = ln p(x, z) - ln q(z | x)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def importance_bound(log_w: jax.Array) -> jax.Array:
    """L_k = ln (1/k) sum_i w_i over the first axis (Burda et al. 2016, eq. 8): [k, ...] -> [...].

    k = 1 is the evidence lower bound; in expectation it rises with k to ln p(x). Its gradient is
    the sum of the weights' gradients by their normalised weights (eq. 14).
    """
    return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


def normalised_weights(log_w: jax.Array) -> jax.Array:
    """w_i / sum_j w_j along the first axis, without gradient."""
    return jax.nn.softmax(jax.lax.stop_gradient(log_w), axis=0)


def doubly_reparameterised(
    log_w: jax.Array, log_joint: jax.Array, log_w_of_z: jax.Array
) -> jax.Array:
    """A surrogate whose value is L_k and whose gradient is that of Tucker et al. (2019, eq. 8).

    All [k, ...]. log_joint: ln p(x, z) with gradients to the generative parameters alone (z held).
    log_w_of_z: ln w with gradients through z alone (both networks' parameters held). The usual
    gradient's score term, whose expectation is zero and whose noise grows with k, is gone.
    """
    weights = normalised_weights(log_w)
    surrogate = (weights * log_joint + weights**2 * log_w_of_z).sum(0)
    value = jax.lax.stop_gradient(importance_bound(log_w))
    return value + surrogate - jax.lax.stop_gradient(surrogate)


def free_bits(kl: jax.Array, nats: float) -> jax.Array:
    """max(nats, mean over the batch of a layer's KL [B]) (Kingma et al. 2016, eq. 15): a scalar."""
    return jnp.maximum(kl.mean(), nats)
