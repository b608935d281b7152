"""A network that also knows how far to believe its label (Dufour et al. 2024)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxgen.errors import invalid


class Coherent(nn.Module):
    """`inner` with an embedding of the label's coherence added to that of the label.

    module(x, noise[B], labels[B]) as inner's; labels are y * levels + c, with y inner's label and c
    in [0, levels) the coherence, so inner's "no label" n is n * levels. inner: a network with a
    `width` whose label table is an `nn.Embed` named "labels" (DiT, MLP).
    """

    inner: Any
    levels: int

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, labels: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """What inner says of x [B, ...]."""
        shape = (self.levels, self.inner.width)
        extra = self.param("coherence", nn.initializers.normal(0.02), shape)[labels % self.levels]
        found = []

        def add(
            following: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
        ) -> Any:
            out = following(*args, **kwargs)
            module, called = context.module, context.method_name == "__call__"
            if not (called and isinstance(module, nn.Embed) and module.name == "labels"):
                return out
            found.append(module)
            return out + extra.astype(out.dtype)

        with nn.intercept_methods(add):
            out = self.inner(x, noise, labels // self.levels, train=train)
        if not found:
            name = type(self.inner).__name__
            raise invalid("config.model", name, "a network with an nn.Embed named 'labels'")
        return out
