"""A network that also knows how far to believe its label (Dufour et al. 2024)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxgen.nn.labels import changed


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
        self,
        x: jax.Array,
        noise: jax.Array,
        labels: jax.Array,
        *,
        train: bool = False,
        **options: Any,
    ) -> Any:
        """What inner says of x [B, ...]; options: what else it takes (taps)."""
        shape = (self.levels, self.inner.width)
        extra = self.param("coherence", nn.initializers.normal(0.02), shape)[labels % self.levels]
        with changed(lambda out: out + extra.astype(out.dtype)):
            return self.inner(x, noise, labels // self.levels, train=train, **options)
