"""Representation alignment: REPA (Yu et al. 2024, arXiv 2410.06940).

A projection of an early layer's features is drawn to a frozen encoder's of the clean image.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Tap, Term
from jaxgen.method import Spec, encoder_of, require_column

EPS = 1e-6


def alignment(
    spec: Spec, *, layer: Tap, encoder: Any = None, column: str | None = None,
    weight: float = 0.5, width: int = 2048, until: int | None = None,
) -> Term:  # fmt: skip
    """weight times the mean over patches of 1 - cos(projection(h), features).

    layer: the tap (4 of B/2, 8 of larger DiTs in the paper). encoder: a section of
    `frozen.encoders` (or an `Encoder`), run in the step; or column: features computed with the data
    (`jaxgen encode`). Features are [B, N, D], one for each patch, or [B, D], for the mean over
    patches. width: of the projector, three layers of SiLU. until: images seen at which it ends.
    Raises UsageError unless there is an encoder or a column, and for other numbers of patches.
    """
    if (encoder is None) == (column is None):
        raise invalid("method.terms.alignment", (encoder, column), "an encoder or a column")
    known = encoder_of(part(encoder, ROOMS["encoder"], "method.terms.alignment.encoder"))
    if column is not None:
        size = require_column(spec, column, "method.terms.alignment.column").shape[-1]
    else:
        size = jax.eval_shape(known, jnp.zeros((1, *spec.shape))).shape[-1]
    layers: list[Any] = [nn.Dense(width), nn.silu, nn.Dense(width), nn.silu, nn.Dense(size)]
    projector = nn.Sequential(layers)

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        goal = noised.batch[column] if column else known.apply(frozen, noised.x0)
        goal = jax.lax.stop_gradient(goal).reshape(len(goal), -1, size)
        made: Any = projector.apply({"params": params}, noised.taps[layer].astype(jnp.float32))
        made = made.reshape(len(made), -1, size)
        made = made.mean(1, keepdims=True) if goal.shape[1] == 1 else made
        if made.shape != goal.shape:
            raise invalid("method.terms.alignment", f"features of {goal.shape[1]} patches",
                          f"1 or {made.shape[1]}, those of layer {layer}")  # fmt: skip
        lengths = jnp.linalg.norm(made, axis=-1) * jnp.linalg.norm(goal, axis=-1)
        apart = 1 - ((made * goal).sum(-1) / jnp.maximum(lengths, EPS)).mean(1)
        return weight * (apart if until is None else apart * (noised.batch["seen"] < until))

    def init(key: jax.Array, taps: Any) -> PyTree:
        return projector.init(key, jnp.zeros(taps[layer].shape))["params"]

    return Term(name="alignment", of=of, init=init, taps=(layer,), frozen=known.params)
