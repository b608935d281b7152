"""The best linear field of the library's own loss at one time, by one step of Newton's method."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxgen.families.diffusion.core import path
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.core.weighting import simple
from jaxgen.families.diffusion.terms.loss import denoising_loss

PATH = path.linear()


class Linear(nn.Module):
    """a x + b, one coordinate: module(x, noise, labels) as every network."""

    @nn.compact
    def __call__(self, x: jax.Array, noise: Any, labels: Any, *, train: bool = False) -> jax.Array:
        """x [B, 1] -> [B, 1]."""
        return nn.Dense(1)(x)


def only(t: float) -> Times:
    """Training at one time alone."""
    return Times(
        lambda keys, key, index, path, state: (
            jnp.full(keys.shape, t),
            jnp.ones(keys.shape),
        )
    )


def best_line(x0: jax.Array, t: float, key: jax.Array, **options: Any) -> jax.Array:
    """(intercept, slope) of the velocity that minimises the denoising loss over x0 [B, 1].

    The loss is quadratic in the two, so one Newton step finds the minimum. options: the loss's.
    """
    model, times = Linear(), only(t)
    loss = denoising_loss(Network(model, PATH, "velocity"), times, simple(), num_classes=1,
                          **options)  # fmt: skip
    size = x0.shape[0]
    labels = jnp.zeros(size, jnp.int32)
    batch = {"image": x0, "label": labels, "index": jnp.arange(size), "microbatch": jnp.int32(0)}
    start = model.init(key, x0[:1], jnp.zeros(1), labels[:1])["params"]
    flat, back = ravel_pytree(start)

    def value(theta: jax.Array) -> jax.Array:
        return loss({"net": back(theta)}, batch, key, {"times": times.init()})[0]

    step = jnp.linalg.solve(jax.hessian(value)(flat), jax.grad(value)(flat))
    return flat - step
