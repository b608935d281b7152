"""`Description`: what a network is told of an example in the place of its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxgen.method import Sampler, fold

PyTree = Any
Encoder = Callable[[jax.Array], jax.Array]
"""Examples [B, *shape] -> vectors [B, D]; frozen."""


DRAW = 2
"""Descriptions draw below fold_in(key, 2); samplers of images use 0 and 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Vectors [B, D], or sets of them [B, K, D], for `nn.labels.Described`; frozen but for `loss`.

    of(examples [B, *shape]) -> descriptions, in training. draw(params, keys [B], labels [B]) ->
    descriptions to sample with. calls: evaluations of a network that a draw costs. Where a draw has
    parameters to learn: init(key) -> params, and loss(params, descriptions, labels, keys [B]) ->
    [B], added to the denoiser's own.
    """

    of: Callable[[jax.Array], jax.Array]
    draw: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    calls: float = 0.0
    init: Callable[[jax.Array], PyTree] | None = None
    loss: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array] | None = None


def described(sampler: Sampler, describe: Description) -> Sampler:
    """A sampler of descriptions in the place of labels as one of labels, which draws them first."""

    def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        own = params["describe"] if describe.init is not None else None
        return describe.draw(own, fold(keys, DRAW), labels)

    def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
        return sampler.fn(params, keys, draw(params, keys, labels))

    return Sampler(fn, sampler.calls + describe.calls, sampler.steps)
