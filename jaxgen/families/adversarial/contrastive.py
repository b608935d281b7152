"""Heads that compare embeddings within a batch: ContraGAN's 2C and ReACGAN's D2D-CE."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.families.adversarial.judgement import Head, Judgement
from jaxgen.nn.gan_layers import Dense, Embed

NONE = -1e9  # the exponent of a pair that does not count


def conditional_contrastive(
    embedded: jax.Array, proxies: jax.Array, labels: jax.Array, temperature: float
) -> jax.Array:
    """The 2C loss (Kang & Park 2020) of unit vectors [B, E]: embeddings, their proxies.

    -log of the share that the proxy and the other embeddings of the same label have of it and all
    other embeddings, exponents over the temperature.
    """
    other, same = ~jnp.eye(len(labels), dtype=bool), labels[:, None] == labels
    proxy = (embedded * proxies).sum(-1, keepdims=True) / temperature
    pairs = embedded @ embedded.T / temperature
    share = [
        nn.logsumexp(jnp.concatenate([proxy, jnp.where(counted, pairs, NONE)], 1), 1)
        for counted in (other & same, other)
    ]
    return (share[1] - share[0]).mean()


def data_to_data(
    embedded: jax.Array,
    proxies: jax.Array,
    labels: jax.Array,
    temperature: float,
    positive: float,
    negative: float,
) -> jax.Array:
    """D2D-CE (Kang et al. 2021) of unit vectors [B, E]: embeddings, their proxies.

    The positive is min(f.v - positive, 0), the negatives are max(f_i.f_j - negative, 0) of other
    labels, over the temperature. No maximum is subtracted from the negatives alone, as StudioGAN
    does, which is another loss.
    """
    easy = jnp.minimum((embedded * proxies).sum(-1, keepdims=True) - positive, 0) / temperature
    hard = jnp.maximum(embedded @ embedded.T - negative, 0) / temperature
    exponents = jnp.where(labels[:, None] != labels, hard, NONE)
    return (nn.logsumexp(jnp.concatenate([easy, exponents], 1), 1) - easy[:, 0]).mean()


class Contrastive(Head):
    """Beside the logit a unit embedding [B, width], and a unit proxy for each label.

    weight x 2C, or x D2D-CE where a margin is given, is added to the discriminator's loss, of real
    images, and to the generator's, of fake ones. margin: the positive one, the negative is 1 less.
    """

    num_classes: int
    width: int = 128
    weight: float = 1.0
    temperature: float = 1.0
    margin: float | None = None
    spectral: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """h [B, F], labels [B] -> logits [B]; classes: embeddings and proxies, [B, width] each."""
        embedded = Dense(self.width, self.spectral, name="embedding")(h)
        proxies = Embed(self.num_classes, self.width, self.spectral, name="labels")(labels)
        said = _unit(embedded), _unit(proxies)
        return Judgement(Dense(1, self.spectral, name="out")(h)[:, 0], classes=said)

    def discriminator_term(self, real: Judgement, fake: Judgement, labels: jax.Array) -> jax.Array:
        """Of the real images."""
        return self._term(real, labels)

    def generator_term(self, fake: Judgement, labels: jax.Array) -> jax.Array:
        """Of the fake images."""
        return self._term(fake, labels)

    def _term(self, judged: Judgement, labels: jax.Array) -> jax.Array:
        (embedded, proxies), t = judged.classes, self.temperature
        if self.margin is None:
            value = conditional_contrastive(embedded, proxies, labels, t)
        else:
            value = data_to_data(embedded, proxies, labels, t, self.margin, 1 - self.margin)
        return self.weight * value


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
