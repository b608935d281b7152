"""Balance of experts: all of a batch's tokens on few experts cost more than evenly spread ones.

Fei et al., "Scaling Diffusion Transformers to 16 Billion Parameters" (2024), eq. 5 and 6; Shazeer
et al. 2017.
"""

from __future__ import annotations

import jax

from jaxgen.errors import invalid
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term
from jaxgen.nn.dit_moe import ROUTING


def balance(*, weight: float = 0.01) -> Term:
    """weight x E x sum over experts of f p, summed over layers.

    f: the share of the batch's choices that fell on an expert of E, p: the mean of its
    probabilities. Evenly spread it is the weight for each layer, which is the least; all tokens on
    the same k experts, E / k times that. For networks with the tap "routing" (`nn.dit_moe`).
    """
    if weight < 0:
        raise invalid("method.terms.balance.weight", weight, "weight >= 0")

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        chosen, p = noised.taps[ROUTING][:, :, 0], noised.taps[ROUTING][:, :, 1]
        return weight * p.shape[-1] * (chosen.mean(0) * p).sum((1, 2))

    return Term(name="balance", of=of, taps=(ROUTING,), whole_batch=True)
