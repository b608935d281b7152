"""Heads: from a discriminator's features and the labels to logits.

A head is a Flax module (features[B, F], labels[B], *, train) -> `Judgement`.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn.gan import maxout
from jaxgen.nn.gan_layers import Dense, Embed


class Judgement(NamedTuple):
    """logits [B], high for real. direction [B]: SAN's second logits, or None.

    direction is what only the last layer learns from (`normalised`).
    """

    logits: jax.Array
    direction: jax.Array | None = None


class Unconditional(nn.Module):
    """One linear layer; labels are ignored."""

    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F] -> logits [B]."""
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0])


class Projection(nn.Module):
    """A linear layer plus the inner product with the label's embedding (Miyato & Koyama 2018)."""

    num_classes: int
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits [B]."""
        table = Embed(self.num_classes, h.shape[-1], self.spectral, name="labels")
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0] + (table(labels) * h).sum(-1))


class Concatenation(nn.Module):
    """Features beside an embedding of the label, through a joint hidden layer (Mirza & Osindero).

    pieces: linear pieces of the units of both hidden layers, 1 for leaky ReLU. The paper's MNIST
    discriminator: label_width 50 with 5 pieces, width 240 with 4.
    """

    num_classes: int
    label_width: int = 50
    width: int = 240
    label_pieces: int = 5
    pieces: int = 4
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits [B]."""
        size = self.label_width * self.label_pieces
        table = Embed(self.num_classes, size, self.spectral, name="labels")
        h = jnp.concatenate([h, _units(table(labels), self.label_pieces)], -1)
        h = _units(Dense(self.width * self.pieces, self.spectral, name="joint")(h), self.pieces)
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0])


def _units(x: jax.Array, pieces: int) -> jax.Array:
    return maxout(x, pieces) if pieces > 1 else nn.leaky_relu(x, 0.2)


class Normalised(nn.Module):
    """SAN's last layer: the inner product with a unit vector, one for each class if conditional.

    Features learn from `logits`, in which the vector is held; the vector learns from `direction`,
    in which the features are held (Takida et al. 2024, section 4).
    """

    num_classes: int
    conditional: bool = True

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits and direction, [B] each."""
        rows = self.num_classes if self.conditional else 1
        table = Embed(rows, h.shape[-1], name="direction")
        w = table(labels if self.conditional else jnp.zeros_like(labels))
        w = w / (jnp.linalg.norm(w, axis=-1, keepdims=True) + 1e-12)
        hold = jax.lax.stop_gradient
        return Judgement((hold(w) * h).sum(-1), (w * hold(h)).sum(-1))


def unconditional(*, spectral: bool = False) -> nn.Module:
    """`Unconditional`. spectral: spectral norm on the layer."""
    return Unconditional(spectral)


def projection(*, num_classes: int, spectral: bool = False) -> nn.Module:
    """`Projection`. spectral: spectral norm on the layer and on the table."""
    return Projection(num_classes, spectral)


def concatenation(
    *,
    num_classes: int,
    label_width: int = 50,
    width: int = 240,
    label_pieces: int = 5,
    pieces: int = 4,
    spectral: bool = False,
) -> nn.Module:
    """`Concatenation`; its fields."""
    return Concatenation(num_classes, label_width, width, label_pieces, pieces, spectral)


def normalised(*, num_classes: int, conditional: bool = True) -> nn.Module:
    """`Normalised`; its fields."""
    return Normalised(num_classes, conditional)
