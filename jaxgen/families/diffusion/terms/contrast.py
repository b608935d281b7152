"""Contrastive Flow Matching (Stoica et al. 2025): away from another example's target."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.prediction import target
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term, example_mean


def contrast(weight: float = 0.05) -> Term:
    """Minus `weight` times the squared distance to the next example's target at this one's t.

    0.05 in the paper. With targets u of mean m the best output is (E[u | x_t] - c m) / (1 - c), c
    the weight. It sees the whole batch, each microbatch its own. Raises UsageError: weight outside
    [0, 1), fewer than two examples.
    """
    if not 0 <= weight < 1:
        raise invalid("method.terms.contrast.weight", weight, "0 <= weight < 1")

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        if noised.x0.shape[0] < 2:
            raise invalid("config.data.batch_size", noised.x0.shape[0],
                          ">= 2 per microbatch with contrast")  # fmt: skip
        net = noised.network
        x0, eps = (jnp.roll(a, 1, axis=0) for a in (noised.x0, noised.eps))
        other = target(net.kind, x0, eps, noised.t, net.path, sigma_data=net.sigma_data)
        return -weight * noised.weight * example_mean((noised.output - other) ** 2)

    return Term(name="contrast", of=of, whole_batch=True)
