"""What discriminator and generator minimise, as functions of logits [B]; each a mean.

The minimax game is Goodfellow et al. 2014's; least squares Mao et al. 2017's; hinge Lim & Ye 2017's
and Miyato et al. 2018's; Wasserstein Arjovsky et al. 2017's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus


@dataclasses.dataclass(frozen=True)
class Loss:
    """discriminator(real[B], fake[B]) and generator(fake[B]), float32 scalars to minimise.

    lipschitz: means nothing unless the discriminator's slope is bounded. threshold: the logit above
    which an image counts as judged real.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    lipschitz: bool = False
    threshold: float = 0.0


def _cross_entropy(real: jax.Array, fake: jax.Array) -> jax.Array:
    return softplus(-real).mean() + softplus(fake).mean()


def saturating() -> Loss:
    """The minimax game: the generator minimises log(1 - D), D the sigmoid of the logit."""
    return Loss(_cross_entropy, lambda fake: -softplus(fake).mean())


def non_saturating() -> Loss:
    """As the minimax game, but the generator maximises log D."""
    return Loss(_cross_entropy, lambda fake: softplus(-fake).mean())


def least_squares() -> Loss:
    """Half the squared distance to 1 for real, to 0 for fake; the generator's to 1."""

    def discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
        return 0.5 * (jnp.square(real - 1).mean() + jnp.square(fake).mean())

    return Loss(discriminator, lambda fake: 0.5 * jnp.square(fake - 1).mean(), threshold=0.5)


def hinge() -> Loss:
    """max(0, 1 - real) + max(0, 1 + fake); the generator raises the logit."""

    def discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
        return relu(1 - real).mean() + relu(1 + fake).mean()

    return Loss(discriminator, lambda fake: -fake.mean())


def wasserstein() -> Loss:
    """mean(fake) - mean(real): minus an estimate of the Wasserstein-1 distance, times the slope."""
    return Loss(
        lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), lipschitz=True
    )
