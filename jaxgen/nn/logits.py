"""A backbone and a linear output for each class: a classifier, or an energy of both."""

from __future__ import annotations

import flax.linen as nn
import jax


class Logits(nn.Module):
    """backbone(x, *, train) -> features [B, D], and f(x) [B, classes] linear in them."""

    backbone: nn.Module
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """f(x), float32 [B, classes], of x [B, ...]."""
        return nn.Dense(self.classes, name="logits")(self.backbone(x, train=train))
