"""f-divergences between a teacher p and a student q, as weights of a difference of scores.

For a sample x = G(z) of q the gradient of D_f(p || q) = E_q f(p / q) is

    -E h(r) (grad ln p - grad ln q) . dG,    h(r) = f''(r) r^2,    r = p(x) / q(x)

(Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching", 2025, theorem 1 and
table 1). Reverse KL, whose h is 1, is distribution matching distillation (Yin et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxgen.errors import unknown

LARGEST = 10.0
"""Of |ln r|: what a critic says beyond it is rounding, and one example would outweigh a batch."""

WEIGHTS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "reverse_kl": jnp.zeros_like,
    "softened_reverse_kl": lambda log_ratio: -jax.nn.softplus(log_ratio),
    "jensen_shannon": lambda log_ratio: -jax.nn.softplus(-log_ratio),
    "squared_hellinger": lambda log_ratio: log_ratio / 2 - jnp.log(2.0),
    "forward_kl": lambda log_ratio: log_ratio,
    "jeffreys": lambda log_ratio: jax.nn.softplus(log_ratio),
}
"""ln h of ln r: of 1, 1 / (1 + r), r / (1 + r), sqrt(r) / 2, r and 1 + r; from the divergence that
seeks single modes of the teacher to those that cover all of them."""


def weight(divergence: str, log_ratio: jax.Array, *, normalised: bool = True) -> jax.Array:
    """h(r) [B] of ln r [B]; normalised: over the batch's mean, so that all have the same scale.

    The mean is over all examples given (a microbatch; with several devices, all of them). Raises
    UsageError for a divergence that is none of `WEIGHTS`.
    """
    if divergence not in WEIGHTS:
        raise unknown("distill.divergence", divergence, WEIGHTS)
    log = WEIGHTS[divergence](jnp.clip(log_ratio, -LARGEST, LARGEST))
    if not normalised:
        return jnp.exp(log)
    return jnp.exp(log - jax.nn.logsumexp(log) + jnp.log(log.size))
