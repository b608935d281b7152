"""DiffMoE: in training experts choose their tokens from the whole batch; in sampling tokens choose.

Shi et al., "DiffMoE: Dynamic Token Selection for Scalable Diffusion Transformers" (2025), section
3: a pool of all of a batch's tokens, of which each expert takes the same number, so that noisy or
difficult images get more of them; and a predictor of what is taken, with a threshold for each
expert, by which a token is given to experts when there is no batch to choose from.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import BATCH, places, position, size
from jaxgen.nn import dit
from jaxgen.nn.experts import Experts, Router, over_places
from jaxgen.nn.stack import Stack, Taps

CAPACITY = "capacity"
"""The tap of what the predictors cost: [B, depth], cross-entropy and the thresholds' loss."""


class Block(dit.Block):
    """DiT's block with experts in the place of the MLP. Sows `CAPACITY` into "statistics"."""

    experts: int
    capacity: float

    def _mlp(self, x: jax.Array, images: int) -> jax.Array:
        p = nn.softmax(Router(self.experts, name="router")(x))
        logits = Predictor(self.experts, self.width // 4, name="predictor")(x)
        threshold = self.param("threshold", nn.initializers.zeros, (self.experts,), jnp.float32)
        most = None
        if self.train:
            taken, most = chosen(p.reshape(images, -1, self.experts), self.capacity)
            lost = prediction_loss(logits, threshold, taken, self.capacity / self.experts)
            lost = over_places(lost.reshape(images, -1))
        else:
            taken, lost = logits > threshold, jnp.zeros(images)
        self.sow("statistics", CAPACITY, lost)
        every = jnp.broadcast_to(jnp.arange(self.experts), p.shape)
        hidden = int(self.mlp_ratio * self.width)
        experts = Experts(self.experts, hidden, self.swiglu, self.dtype, name="experts")
        return experts(x, every, p, taken, most)


class Predictor(nn.Module):
    """Logits of which experts take a token, from the token as it is: no gradient goes back."""

    experts: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, D] -> float32 [T, experts]."""
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        h = nn.silu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.experts, name="out")(h)


def prediction_loss(
    logits: jax.Array, threshold: jax.Array, taken: jax.Array, share: float
) -> jax.Array:
    """[T]: cross-entropy of what experts took, bool [T, E], and the thresholds' own loss.

    share: of all tokens, what an expert takes.
    """
    wrong = jnp.logaddexp(0.0, logits) - taken * logits
    return (wrong + pinball(logits, threshold, 1 - share)).mean(-1)


def pinball(logits: jax.Array, threshold: jax.Array, share: float) -> jax.Array:
    """A loss of thresholds that is least where `share` of the logits lie below (Koenker 1978)."""
    above = jax.lax.stop_gradient(logits) - threshold
    return jnp.maximum(share * above, (share - 1) * above)


def chosen(p: jax.Array, capacity: float) -> tuple[jax.Array, int]:
    """Which of this device's tokens each expert takes, and how many pairs that are at most.

    p [b, n, E]: probabilities. Of all tokens of the batch, those of other devices too, each expert
    takes the same number of its likeliest, `capacity` experts a token on average; of equal ones
    the first. Returns bool [b n, E].
    """
    (b, n, experts), total = p.shape, places() or p.shape[1]
    whole = jax.lax.stop_gradient(p)
    if places() is not None:
        whole = jax.lax.all_gather(whole, "sequence", axis=1, tiled=True)[:, :total]
    axes = tuple(axis for axis in BATCH if size(axis) > 1)
    if axes:
        whole = jax.lax.all_gather(whole, axes, axis=0, tiled=True)
    count = len(whole) * total
    each = min(count, max(1, round(capacity * count / experts)))
    _, best = jax.lax.top_k(whole.reshape(count, experts).T, each)
    taken = jnp.zeros((experts, count), bool)
    taken = jax.vmap(lambda row, at: row.at[at].set(True))(taken, best)
    taken = taken.reshape(experts, -1, total).transpose(1, 2, 0)
    taken = jax.lax.dynamic_slice_in_dim(taken, position(*BATCH) * b, b, 0)
    if places() is not None:
        taken = jnp.pad(taken, ((0, 0), (0, n * size("sequence") - total), (0, 0)))
        taken = jax.lax.dynamic_slice_in_dim(taken, position("sequence") * n, n, 1)
    return taken.reshape(b * n, experts), experts * min(each, b * n)


class DiffMoE(dit.DiT):
    """DiffMoE: a `DiT` with `experts` experts, of which a token gets `capacity` on average.

    In training (train=True) each expert takes its share of all tokens of the microbatch; which of
    them depends on all of it. Else a token is given to those experts that its own predictor names,
    so that a sample depends on its own key alone; what is computed is then as much as the tokens
    ask for. Predictors and thresholds are learnt by `families.diffusion.terms.capacity`, which has
    to be among the terms and asks for the tap "capacity" (`CAPACITY`). The paper keeps thresholds
    as running averages; here they are parameters whose loss is least at the same quantile.
    """

    sown: ClassVar[str] = CAPACITY
    experts: int = 8
    capacity: float = 1.0

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(Block, experts=self.experts, capacity=self.capacity)
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _through(
        self,
        h: jax.Array,
        c: jax.Array,
        angles: jax.Array | None,
        shape: tuple[int, int],
        taps: Taps,
        train: bool,
    ) -> tuple[jax.Array, dict[Any, jax.Array]]:
        if train and CAPACITY not in taps:
            allowed = "capacity among them: sampling needs what it trains"
            raise invalid("method.terms", "none of that name", allowed)
        return super()._through(h, c, angles, shape, taps, train)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if self.experts < 1:
            raise invalid("model.experts", self.experts, "experts >= 1")
        if not 0 < self.capacity <= self.experts:
            allowed = f"0 < capacity <= {self.experts}, the number of experts"
            raise invalid("model.capacity", self.capacity, allowed)
