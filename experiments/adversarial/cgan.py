"""Conditional GAN: the label to generator and discriminator, on a labelled mixture in the plane."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import fit
from experiments.shared.check import Check, above, below, control
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages

PAPER = "Conditional Generative Adversarial Nets"
ENTRY = "jaxgen.families.adversarial.head.concatenation"
MEANS = np.array([[1.5, 0.2], [-0.3, 1.2], [-1.6, -0.4], [0.5, -1.3]], np.float32)
STD, SEEDS, SIZE = 0.15, 4, 500


def checks() -> list[Check]:
    """Each class has its mean; a discriminator without labels does not teach them."""
    joint = dict(name="concatenation", label_width=8, width=16, label_pieces=2, pieces=2)
    given = trained(joint, 1)[0]
    centres = given.mean(1)
    shares = np.stack([accuracy(run) for run in trained("unconditional", SEEDS)])
    return [
        below("error of a class's mean", np.abs(centres - MEANS).max(), 0.15),
        above("share of samples nearest to their own class's mean", accuracy(given), 0.95),
        # A generator asked for the neighbour's label gives the neighbour's mode.
        below("share that stays when labels are swapped", accuracy(given[[1, 0, 3, 2]]), 0.05),
        control(above("the same without labels in the discriminator", shares.mean(), 0.95)),
    ]


def accuracy(samples: np.ndarray) -> float:
    """Of samples [class, n, 2]: the share whose nearest mean is that of their class."""
    nearest = np.square(samples[:, :, None] - MEANS).sum(-1).argmin(-1)
    return float((nearest == np.arange(4)[:, None]).mean())


def trained(head: Any, seeds: int) -> np.ndarray:
    """Samples [seed, class, n, 2] of runs that differ by seed."""
    method = adversarial(
        Spec((2,), 4, None),
        {
            "generator": MLPGenerator((2,), 4, width=32, depth=1, label_width=8, squash=False),
            "discriminator": MLPDiscriminator(16, 1, activation="maxout", pieces=3),
        },
        optax.adam(3e-3, b1=0.0, b2=0.99),
        Averages(half_life=(4_000,)),
        head=head,
        regularisers=(dict(name="r1", weight=0.3),),
        latent=dict(name="normal", size=4),
    )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        label = jnp.arange(64) % 4
        noise = STD * jax.random.normal(key, (64, 2))
        return {"image": jnp.asarray(MEANS)[label] + noise, "label": label}

    def run(seed: jax.Array) -> jax.Array:
        params = fit(method, draw, 600, seed).ema["half_life_4000"]
        keys = jax.random.split(jax.random.key(9), 4 * SIZE)
        labels = jnp.repeat(jnp.arange(4), SIZE)
        return method.sampler().fn(params, keys, labels).reshape(4, SIZE, 2)

    return np.asarray(quick_jit(jax.vmap(run))(jnp.arange(seeds)))
