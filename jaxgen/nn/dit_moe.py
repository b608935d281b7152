"""DiT-MoE: a DiT whose MLPs are experts; each token gets those that a router likes best.

Fei et al., "Scaling Diffusion Transformers to 16 Billion Parameters" (2024), section 3: shared
experts for all tokens, top-k of the others by the softmax of a linear router, weighted by it.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn import dit
from jaxgen.nn.experts import Experts, Router, over_places
from jaxgen.nn.stack import Stack

ROUTING = "routing"
"""The tap of what routers did: [B, depth, 2, experts], the share of an image's choices that fell on
each expert, and the mean of its probabilities."""


class Block(dit.Block):
    """DiT's block with experts in the place of the MLP. Sows `ROUTING` into "statistics"."""

    experts: int
    chosen: int
    shared: int

    def _mlp(self, x: jax.Array, images: int) -> jax.Array:
        hidden = int(self.mlp_ratio * self.width)
        p = nn.softmax(Router(self.experts, name="router")(x))
        weight, expert = jax.lax.top_k(p, self.chosen)
        if self.is_mutable_collection("statistics"):
            chosen = jax.nn.one_hot(expert, self.experts).mean(1)
            both = jnp.stack([chosen, p], axis=1).reshape(images, -1, 2, self.experts)
            self.sow("statistics", ROUTING, over_places(both))
        h = Experts(self.experts, hidden, self.swiglu, self.dtype, name="experts")(
            x, expert, weight
        )
        return h + self._shared(x) if self.shared else h

    def _shared(self, x: jax.Array) -> jax.Array:
        """The experts that all tokens get: one gated MLP, a width of hidden units for each."""
        init: Any = nn.initializers.xavier_uniform()
        options = dict(use_bias=False, kernel_init=init, dtype=self.dtype)
        value, gate = (
            dit.Columns(self.shared * self.width, **options, name=n)(x) for n in ("value", "gate")
        )
        return dit.Rows(self.width, **options, name="contract")(nn.silu(gate) * value)


class DiTMoE(dit.DiT):
    """DiT-MoE: a `DiT` with experts: `experts` of them, `chosen` for a token, `shared` for all.

    size: "S/2" to "G/8", 8 experts in S to XL and 16 in G; 2 are chosen and 2 are shared, each of
    these `width` hidden units. swiglu (on, as in the paper): experts are gated and without biases,
    of mlp_ratio x width units. An image's tokens are routed by what they are, whatever else is in
    the batch; no expert is ever full. Balance is `families.diffusion.terms.balance`'s, which asks
    for the tap "routing" (`ROUTING`).
    """

    # Section 4.1 of the paper.
    table: ClassVar[dit.Sizes] = {
        **{name: {**fields, "experts": 8} for name, fields in dit.SIZES.items()},
        "G": dict(depth=40, width=1408, heads=16, experts=16),
    }
    sown: ClassVar[str] = ROUTING
    swiglu: bool = True
    experts: int = 0
    chosen: int = 2
    shared: int = 2

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(
            Block, experts=self.experts, chosen=self.chosen, shared=self.shared
        )
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if not 1 <= self.chosen <= self.experts:
            allowed = f"1 to {self.experts}, the number of experts"
            raise invalid("model.chosen", self.chosen, allowed)
        if self.shared < 0:
            raise invalid("model.shared", self.shared, "shared >= 0")
