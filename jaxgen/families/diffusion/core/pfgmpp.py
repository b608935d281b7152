"""PFGM++: noise of heavier tails than a Gaussian's, with EDM as its limit (Xu et al. 2023).

Data of N dimensions gets D more, of which only the radius r matters; r = sigma sqrt(D) makes it
EDM's noise level as D grows. The noised point is x0 + R u with u on the sphere and density of
x - x0 in proportion to (|x - x0|^2 + r^2)^(-(N + D) / 2); the flow is dx/dsigma = (x - x0) / sigma.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold, normal

OF_SIZE, OF_EXTRA, DIRECTION = range(3)
"""A draw's streams: the two gamma variates of its radius, and where it points."""


def radius(keys: jax.Array, size: int, extra: float) -> jax.Array:
    """R / sigma [B] of the kernel for N = size, D = extra (Xu et al. 2023): sqrt(D R1 / (1 - R1)).

    R1 ~ Beta(N / 2, D / 2), by two gamma variates whose ratio is R1 / (1 - R1) without a
    cancellation; the square over N is F-distributed with (N, D) degrees of freedom.
    Raises UsageError: extra <= 0.
    """
    if not extra > 0:
        raise invalid("pfgmpp.extra", extra, "extra > 0")
    a = jax.vmap(lambda k: jax.random.gamma(k, size / 2))(fold(keys, OF_SIZE))
    b = jax.vmap(lambda k: jax.random.gamma(k, extra / 2))(fold(keys, OF_EXTRA))
    return jnp.sqrt(extra * a / b)


def kernel_noise(keys: jax.Array, shape: tuple[int, ...], extra: float) -> jax.Array:
    """What stands for a Gaussian's eps: R u / sigma, [B, *shape], u uniform on the sphere.

    As extra grows this is N(0, I); times sigma it is also the prior at the largest sigma.
    """
    u = normal(fold(keys, DIRECTION), shape)
    axes = tuple(range(1, u.ndim))
    length = jnp.sqrt(jnp.sum(u**2, axis=axes, keepdims=True))
    return u / length * radius(keys, math.prod(shape), extra).reshape(-1, *(1,) * len(shape))


def log_kernel(gap: jax.Array, sigma: jax.Array, extra: float) -> jax.Array:
    """ln of the kernel at gap = x - x0 [..., N] up to a constant, [...]; sigma broadcasts to it.

    -(N + D) / 2 ln(1 + |gap|^2 / (D sigma^2)) - N ln sigma: at D = inf, a Gaussian's.
    """
    size = gap.shape[-1]
    square = (gap**2).sum(-1) / sigma**2
    return -0.5 * (size + extra) * jnp.log1p(square / extra) - size * jnp.log(sigma)


def posterior_mean(x: jax.Array, sigma: jax.Array, points: jax.Array, extra: float) -> jax.Array:
    """E[x0 | x] [B, N] for x0 uniform over points [M, N] and sigma []: the optimal denoiser."""
    share = jax.nn.softmax(log_kernel(x[:, None] - points, sigma, extra), axis=-1)
    return share @ points
