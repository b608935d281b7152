"""What a discriminator says of images, and what every head is."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Judgement(NamedTuple):
    """logits [B], high for real. direction [B]: SAN's second logits, or None.

    direction is what only the last layer learns from (`normalised`). counter [B]: what the loss of
    fake images is of, where that is not `logits` (`multi_hinge`). classes: arrays [B, ...] that the
    head's own terms are of (a classifier's logits, embeddings).
    """

    logits: jax.Array
    direction: jax.Array | None = None
    counter: jax.Array | None = None
    classes: Any = None


class Head(nn.Module):
    """A module (features[B, F], labels[B], *, train) -> `Judgement`, with terms of its own.

    The terms are added to the losses of the two players; they see judgements, no parameters.
    margins: logits are margins between classes.
    """

    margins = False

    def discriminator_term(self, real: Judgement, fake: Judgement, labels: jax.Array) -> jax.Array:
        """What the discriminator minimises besides the loss on logits: a scalar."""
        return jnp.zeros(())

    def generator_term(self, fake: Judgement, labels: jax.Array) -> jax.Array:
        """What the generator minimises besides the loss on logits: a scalar."""
        return jnp.zeros(())
