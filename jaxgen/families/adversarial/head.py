"""Heads: from a discriminator's features and the labels to logits.

A head is a `judgement.Head`: (features[B, F], labels[B], *, train) -> `Judgement`, and terms.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.adversarial.classifiers import Auxiliary, Discriminative, MultiHinge, Several
from jaxgen.families.adversarial.contrastive import Contrastive
from jaxgen.families.adversarial.judgement import Head, Judgement
from jaxgen.nn.gan import maxout
from jaxgen.nn.gan_layers import Dense, Embed


class Unconditional(Head):
    """One linear layer; labels are ignored."""

    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F] -> logits [B]."""
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0])


class Projection(Head):
    """A linear layer plus the inner product with the label's embedding (Miyato & Koyama 2018)."""

    num_classes: int
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits [B]."""
        table = Embed(self.num_classes, h.shape[-1], self.spectral, name="labels")
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0] + (table(labels) * h).sum(-1))


class Concatenation(Head):
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


class Normalised(Head):
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


def unconditional(*, spectral: bool = False) -> Head:
    """`Unconditional`. spectral: spectral norm on the layer."""
    return Unconditional(spectral)


def projection(*, num_classes: int, spectral: bool = False) -> Head:
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
) -> Head:
    """`Concatenation`; its fields."""
    return Concatenation(num_classes, label_width, width, label_pieces, pieces, spectral)


def normalised(*, num_classes: int, conditional: bool = True) -> Head:
    """`Normalised`; its fields."""
    return Normalised(num_classes, conditional)


def auxiliary(
    *, num_classes: int, weight: float = 1.0, on_fakes: bool = True, spectral: bool = False
) -> Head:
    """AC-GAN's classifier (`Auxiliary`); its fields."""
    _check(num_classes, weight)
    return Auxiliary(num_classes, weight, on_fakes, False, spectral)


def twin_auxiliary(
    *, num_classes: int, weight: float = 1.0, on_fakes: bool = True, spectral: bool = False
) -> Head:
    """TAC-GAN's two classifiers (`Auxiliary`); its fields."""
    _check(num_classes, weight)
    return Auxiliary(num_classes, weight, on_fakes, True, spectral)


def discriminative(*, num_classes: int, weight: float = 1.0, spectral: bool = False) -> Head:
    """ADC-GAN's classifier (`Discriminative`); its fields."""
    _check(num_classes, weight)
    return Discriminative(num_classes, weight, spectral)


def contrastive(
    *,
    num_classes: int,
    width: int = 128,
    weight: float = 1.0,
    temperature: float = 1.0,
    spectral: bool = False,
) -> Head:
    """ContraGAN's 2C (`Contrastive`); its fields."""
    _check(num_classes, weight, temperature, width)
    return Contrastive(num_classes, width, weight, temperature, None, spectral)


def data_to_data(
    *,
    num_classes: int,
    width: int = 128,
    weight: float = 1.0,
    temperature: float = 0.5,
    margin: float = 0.98,
    spectral: bool = False,
) -> Head:
    """ReACGAN's D2D-CE (`Contrastive`); its fields."""
    _check(num_classes, weight, temperature, width)
    if not 0.5 <= margin <= 1:
        raise invalid("method.head.margin", margin, "0.5 <= margin <= 1")
    return Contrastive(num_classes, width, weight, temperature, margin, spectral)


def several(*, num_classes: int, spectral: bool = False) -> Head:
    """A logit for each class (`Several`). spectral: spectral norm on the layer."""
    _check(num_classes)
    return Several(num_classes, spectral)


def multi_hinge(*, num_classes: int, spectral: bool = False) -> Head:
    """Margins of K + 1 classes (`MultiHinge`). spectral: spectral norm on the layer."""
    _check(num_classes)
    return MultiHinge(num_classes, spectral)


def _check(num_classes: int, *positive: float) -> None:
    """Refuse a head that classifies where there is nothing to tell apart."""
    if num_classes < 2:
        raise invalid("method.head", f"a head that classifies, {num_classes} class", "2 classes")
    if min(positive, default=1) <= 0:
        raise invalid("method.head", positive, "weights, temperatures and widths > 0")
