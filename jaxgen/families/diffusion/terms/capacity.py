"""What teaches `nn.diffmoe` to give tokens to experts without a batch: its predictors' loss.

Shi et al., "DiffMoE: Dynamic Token Selection for Scalable Diffusion Transformers" (2025), section
3.3.
"""

from __future__ import annotations

import jax

from jaxgen.errors import invalid
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term
from jaxgen.nn.diffmoe import CAPACITY


def capacity(*, weight: float = 1.0) -> Term:
    """weight x the sum over layers of the predictors' and thresholds' losses (the tap "capacity").

    No gradient of it reaches the network that denoises, so the weight says only how fast they
    learn.
    """
    if weight <= 0:
        raise invalid("method.terms.capacity.weight", weight, "weight > 0")

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        return weight * noised.taps[CAPACITY].sum(1)

    return Term(name="capacity", of=of, taps=(CAPACITY,), whole_batch=True)
