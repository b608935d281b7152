"""Heads that classify: AC-GAN, TAC-GAN, ADC-GAN, one output a class, and K + 1 classes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.families.adversarial.judgement import Head, Judgement
from jaxgen.nn.gan_layers import Dense


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log of the softmax's share of each label: logits [B, K], labels [B] -> the mean."""
    return (nn.logsumexp(logits, -1) - _at(logits, labels)).mean()


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    # Out of range gives NaN, as `Embed` does.
    taken = jnp.take_along_axis(logits, labels[:, None], 1, mode="fill", fill_value=jnp.nan)
    return taken[:, 0]


class Auxiliary(Head):
    """Beside the logit, a classifier C of K classes (Odena et al. 2017) and perhaps a twin C'.

    Discriminator: -weight (E_real log C(y|x) + E_fake log C(y|x)), the latter if `on_fakes`;
    generator: -weight E_fake log C(y|x). twin (Gong et al. 2019): C' learns the labels of
    fake images, and the generator also minimises weight E_fake log C'(y|x), which undoes the
    entropy that AC-GAN's objective lacks.
    """

    num_classes: int
    weight: float = 1.0
    on_fakes: bool = True
    twin: bool = False
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F] -> logits [B]; classes: C's logits and C''s, [B, K] each."""
        names = ("classes", "twin") if self.twin else ("classes",)
        said = tuple(Dense(self.num_classes, self.spectral, name=name)(h) for name in names)
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0], classes=said)

    def discriminator_term(self, real: Judgement, fake: Judgement, labels: jax.Array) -> jax.Array:
        """Of C and C'."""
        value = cross_entropy(real.classes[0], labels)
        if self.on_fakes:
            value += cross_entropy(fake.classes[0], labels)
        if self.twin:
            value += cross_entropy(fake.classes[1], labels)
        return self.weight * value

    def generator_term(self, fake: Judgement, labels: jax.Array) -> jax.Array:
        """Of C against C'."""
        value = cross_entropy(fake.classes[0], labels)
        return self.weight * (
            value - cross_entropy(fake.classes[1], labels) if self.twin else value
        )


class Discriminative(Head):
    """A classifier of 2 K classes, each label once real (+) and once fake (-) (Hou et al. 2022).

    Discriminator: -weight (E_real log C(y+|x) + E_fake log C(y-|x)); generator: weight E_fake
    [log C(y-|x) - log C(y+|x)], the reverse Kullback-Leibler divergence of the joint laws at the
    best C (theorem 2).
    """

    num_classes: int
    weight: float = 1.0
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F] -> logits [B]; classes [B, 2 K]: real labels, then fake ones."""
        said = Dense(2 * self.num_classes, self.spectral, name="classes")(h)
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0], classes=said)

    def discriminator_term(self, real: Judgement, fake: Judgement, labels: jax.Array) -> jax.Array:
        """Real images have their label's real class, fake ones its fake class."""
        value = cross_entropy(real.classes, labels)
        return self.weight * (value + cross_entropy(fake.classes, labels + self.num_classes))

    def generator_term(self, fake: Judgement, labels: jax.Array) -> jax.Array:
        """The logits' difference: the normaliser is the same for both."""
        said = fake.classes
        return self.weight * (_at(said, labels + self.num_classes) - _at(said, labels)).mean()


class Several(Head):
    """A logit for each class, of which the label's counts (Mescheder et al. 2018)."""

    num_classes: int
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits [B]."""
        return Judgement(_at(Dense(self.num_classes, self.spectral, name="out")(h), labels))


class MultiHinge(Head):
    """Margins c_k - max_{j != k} c_j of K + 1 classes, the last one "fake" (Kavalerov et al. 2021).

    logits: the margin of the label; counter: minus the margin of "fake".
    """

    num_classes: int
    spectral: bool = False
    margins = True

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits and counter, [B] each."""
        said = Dense(self.num_classes + 1, self.spectral, name="out")(h)
        fake = jnp.full_like(labels, self.num_classes)
        return Judgement(_margin(said, labels), counter=-_margin(said, fake))


def _margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    own = labels[:, None] == jnp.arange(logits.shape[1])
    return _at(logits, labels) - jnp.where(own, -jnp.inf, logits).max(1)
