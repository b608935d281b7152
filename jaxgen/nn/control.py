"""A network with a control branch: a copy of itself that is told an image, added to what it says.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023), eq. 2, with the
whole network as the block: y = F(x) + Z2(F'(x + Z1(c), c)), F' a copy of F, Z1 and Z2 linear layers
without bias that start at zero, so that nothing changes at first. Where Z1 reaches no further than
the channels of x, F' is told c besides, as one vector (`jaxgen.nn.conditions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.conditions import Condition, Conditions


class Branch(nn.Module):
    """Z2(F'(x + Z1(c), c)), 0 where c is not told; F' is `model`, which declares c as `column`."""

    model: nn.Module
    column: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        told: Mapping[str, Any],
        hint: jax.Array,
        train: bool,
    ) -> jax.Array:
        """x [B, ..., C], hint [B, ..., c], NaN in all of it where there is none -> as F."""
        zeros = nn.initializers.zeros
        there = jnp.isfinite(hint).all(tuple(range(1, hint.ndim)), keepdims=True)
        c = jnp.where(there, hint, 0.0)
        first = nn.Dense(x.shape[-1], use_bias=False, kernel_init=zeros, name="hint")(c)
        out = self.model(x + first, noise, {**told, self.column: c}, train=train)
        out = nn.Dense(out.shape[-1], use_bias=False, kernel_init=zeros, name="out")(out)
        return jnp.where(there, out, 0.0)


class Controlled(nn.Module):
    """`model` with a branch; its own parameters are where they were, the branch's in "control".

    Called as the model; the condition has, besides what the model is told, `column`: float
    [B, *sizes], on the places of x. Left out, the output is the model's.
    """

    model: nn.Module
    column: str
    sizes: tuple[int, ...]

    def setup(self) -> None:
        """The branch beside the model."""
        copy = self.model.clone(parent=None, conditions=self.conditions)
        self.control = Branch(copy, self.column)
        nn.share_scope(self, self.model)

    @property
    def conditions(self) -> Conditions:
        """What the model declares, and the column."""
        kind = ("vector", *self.sizes) if len(self.sizes) == 1 else ("image", *self.sizes, 1)
        return (*self.model.conditions, (self.column, *kind))

    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *, train: bool = False
    ) -> jax.Array:
        """As the model."""
        known = condition.told if isinstance(condition, Condition) else condition
        told = dict(known) if isinstance(known, Mapping) else {"label": known}
        hint = told.pop(self.column, jnp.full((x.shape[0], *self.sizes), jnp.nan))
        if hint.shape[1:] != self.sizes:
            raise invalid(f"condition.{self.column}", hint.shape[1:], f"{self.sizes}, as declared")
        rest: Any = told["label"] if set(told) == {"label"} else told
        if isinstance(condition, Condition):
            rest = dataclasses.replace(condition, told=rest)
        own = self.model(x, noise, rest, train=train)
        return own + self.control(x, noise, told, hint, train)


def controlled(
    *,
    model: Any,
    column: str,
    channels: int = 1,
    shape: tuple[int, ...],
    num_classes: int,
    out_channels: int,
    levels: int | None = None,
) -> Controlled:
    """The network of section `model`, told a column of the data [*places, channels] by a branch.

    The places are the image's; of vectors [D] a column is one. With the wrap `tune.control` the
    branch alone is trained. The other keywords are what the run tells a network of its data. Raises
    UsageError for a network that cannot be told anything but labels.
    """
    if not hasattr(model, "conditions"):
        allowed = "a network with `conditions` (jaxgen.nn.conditions)"
        raise invalid("config.model.model", type(model).__name__, allowed)
    if channels < 1:
        raise invalid("config.model.channels", channels, "channels >= 1")
    return Controlled(model, column, (*shape[:-1], channels))
