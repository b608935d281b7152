"""StudioGAN: conditionings side by side on a labelled ring, and the losses on fixed logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import fit
from experiments.shared.check import Check, above, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial, loss
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages

PAPER = "StudioGAN: A Taxonomy and Benchmark of GANs for Image Synthesis"
ENTRY = "jaxgen.families.adversarial.adversarial"
CLASSES, STD, SIZE = 8, 0.1, 200
ANGLES = 2 * np.pi * np.arange(CLASSES) / CLASSES
MEANS = 1.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)
REAL, FAKE = jnp.array([2, -1, 0.5]), jnp.array([0.5, -0.3, 1.2])
LOGITS = {
    "non_saturating": (1.635327, 0.530572),
    "least_squares": (1.171667, 0.33),
    "hinge": (2.3, -0.466667),
    "wasserstein": (-0.033333, -0.466667),
}
HEADS = ("projection", "discriminative", "several")


def checks() -> list[Check]:
    """Losses in closed form; how many samples lie nearest to their own label's mode."""
    results = []
    for name, values in LOGITS.items():
        game = getattr(loss, name)()
        found = game.discriminator(REAL, FAKE), game.generator(FAKE)
        for player, value, exact in zip("DG", found, values, strict=True):
            results.append(near(f"{name}, {player}", value, exact, 1e-5))
    results += [
        above(f"share of samples in their label's mode, {head}", accuracy(head), 0.95)
        for head in HEADS
    ]
    plain = accuracy("unconditional")
    return [*results, control(above("that share, unconditional", plain, 0.95))]


def accuracy(head: Any, seed: int = 0) -> float:
    """The share of samples whose nearest mode is their label's."""
    method = adversarial(
        Spec((2,), CLASSES, None),
        {
            "generator": MLPGenerator((2,), CLASSES, width=32, depth=1, squash=False),
            "discriminator": MLPDiscriminator(32, 2),
        },
        optax.adam(3e-3, b1=0.0, b2=0.99),
        Averages(half_life=(4_000,)),
        loss="hinge",
        head=head,
        regularisers=(dict(name="r1", weight=0.1),),
        latent=dict(name="normal", size=4),
    )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        label = jnp.arange(64) % CLASSES
        noise = STD * jax.random.normal(key, (64, 2))
        return {"image": jnp.asarray(MEANS)[label] + noise, "label": label}

    params = quick_jit(lambda: fit(method, draw, 500, seed))().ema["half_life_4000"]
    keys = jax.random.split(jax.random.key(9), CLASSES * SIZE)
    labels = jnp.repeat(jnp.arange(CLASSES), SIZE)
    x = np.asarray(method.sampler().fn(params, keys, labels))
    nearest = np.square(x[:, None] - MEANS).sum(-1).argmin(-1)
    return float((nearest == np.asarray(labels)).mean())
