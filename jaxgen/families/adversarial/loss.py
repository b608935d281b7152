"""What discriminator and generator minimise, as functions of logits [B]; each a mean.

The minimax game is Goodfellow et al. 2014's, whose non-saturating form is the logistic loss; least
squares Mao et al. 2017's; hinge Lim & Ye 2017's and Miyato et al. 2018's; Wasserstein Arjovsky et
al. 2017's; the multi-hinge Kavalerov et al. 2021's. smoothing: of the target of real images alone,
1 - smoothing (Salimans et al. 2016, section 3.4), which fake images' target of 0 keeps honest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus

from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True)
class Loss:
    """discriminator(real[B], fake[B]) and generator(fake[B]), float32 scalars to minimise.

    lipschitz: means nothing unless the discriminator's slope is bounded. margins: wants logits that
    are margins between classes. threshold: the logit above which an image counts as judged real.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    lipschitz: bool = False
    margins: bool = False
    threshold: float = 0.0


def _cross_entropy(smoothing: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    target = _target(smoothing)

    def loss(real: jax.Array, fake: jax.Array) -> jax.Array:
        value = target * softplus(-real).mean() + softplus(fake).mean()
        return value + smoothing * softplus(real).mean() if smoothing else value

    return loss


def _target(smoothing: float) -> float:
    if not 0 <= smoothing < 0.5:
        raise invalid("method.loss.smoothing", smoothing, "0 <= smoothing < 0.5")
    return 1 - smoothing


def saturating(smoothing: float = 0.0) -> Loss:
    """The minimax game: the generator minimises log(1 - D), D the sigmoid of the logit."""
    return Loss(_cross_entropy(smoothing), lambda fake: -softplus(fake).mean())


def non_saturating(smoothing: float = 0.0) -> Loss:
    """As the minimax game, but the generator maximises log D."""
    return Loss(_cross_entropy(smoothing), lambda fake: softplus(-fake).mean())


def least_squares(smoothing: float = 0.0) -> Loss:
    """Half the squared distance to 1 - smoothing for real, to 0 for fake; the generator's to 1."""
    target = _target(smoothing)

    def discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
        return 0.5 * (jnp.square(real - target).mean() + jnp.square(fake).mean())

    return Loss(discriminator, lambda fake: 0.5 * jnp.square(fake - 1).mean(), threshold=0.5)


def _hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    return relu(1 - real).mean() + relu(1 + fake).mean()


def hinge() -> Loss:
    """max(0, 1 - real) + max(0, 1 + fake); the generator raises the logit."""
    return Loss(_hinge, lambda fake: -fake.mean())


def multi_hinge() -> Loss:
    """Crammer and Singer's hinge on margins of K + 1 classes (head `multi_hinge`).

    The last class is "fake". Discriminator: max(0, 1 - margin of the label) of real images and
    max(0, 1 - margin of "fake") of fake ones; generator: max(0, 1 - margin of the label).
    """
    return Loss(_hinge, lambda fake: relu(1 - fake).mean(), margins=True)


def wasserstein() -> Loss:
    """mean(fake) - mean(real): minus an estimate of the Wasserstein-1 distance, times the slope."""
    return Loss(
        lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), lipschitz=True
    )
