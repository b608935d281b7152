"""ADC-GAN: a classifier that tells real labels from fake ones teaches the classes' own spread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import fit
from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial, classifiers
from jaxgen.families.adversarial.judgement import Judgement
from jaxgen.families.adversarial.loss import Loss
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages

PAPER = "Conditional GANs with Auxiliary Discriminative Classifier"
ENTRY = "jaxgen.families.adversarial.head.discriminative"
MEANS, STD, SIZE = np.array([-1.0, 0.0, 1.0]), 0.6, 2000
NO_GAME = Loss(lambda real, fake: 0 * real.mean(), lambda fake: 0 * fake.mean())


def checks() -> list[Check]:
    """The divergence at the best classifier, and three classes that overlap, without a D."""
    results = divergence()
    for name, steps in (("discriminative", 1500), ("auxiliary", 400)):
        samples = trained(name, steps)
        worst = np.abs(samples.std(1) / STD - 1).max()
        check = below(f"worst relative error of a class's deviation, {name}", worst, 0.15)
        results.append(check if name == "discriminative" else control(check))
        if name == "discriminative":
            centres = np.abs(samples.mean(1) - MEANS).max()
            results.append(below("worst error of a class's mean", centres, 0.15))
    return results


def divergence() -> list[Check]:
    """On a table: C(y+|x) / C(y-|x) = p / q, so the generator's term is KL(q | p) of the joints."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(12), 2).reshape(2, 4, 3)  # [x, y]
    both = np.concatenate([p, q], 1)
    best = jnp.log(jnp.asarray(both / both.sum(1, keepdims=True), jnp.float32))
    x, y = (a.reshape(-1) for a in np.meshgrid(np.arange(4), np.arange(3), indexing="ij"))
    module = classifiers.Discriminative(3)

    def term(place: int, label: int) -> float:
        said = Judgement(jnp.zeros(1), classes=best[place][None])
        return float(module.generator_term(said, jnp.array([label])))

    value = sum(q[a, b] * term(a, b) for a, b in zip(x, y, strict=True))
    return [near("generator's term over KL(q | p)", value / (q * np.log(q / p)).sum(), 1, 1e-5)]


def trained(head: str, steps: int, seed: int = 0) -> np.ndarray:
    """Samples [class, SIZE] of a generator that has nothing to learn from but the classifier."""
    method = adversarial(
        Spec((1,), 3, None),
        {
            "generator": MLPGenerator((1,), 3, width=32, depth=1, label_width=8, squash=False),
            "discriminator": MLPDiscriminator(32, 2),
        },
        optax.adam(2e-3, b1=0.0, b2=0.99),
        Averages(half_life=(10_000,)),
        loss=NO_GAME,
        head=dict(name=head, weight=3.0),
        latent=dict(name="normal", size=2),
    )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        label = jnp.arange(96) % 3
        x = jnp.asarray(MEANS, jnp.float32)[label] + STD * jax.random.normal(key, (96,))
        return {"image": x[:, None], "label": label}

    params = quick_jit(lambda: fit(method, draw, steps, seed))().ema["half_life_10000"]
    keys = jax.random.split(jax.random.key(9), 3 * SIZE)
    x = method.sampler().fn(params, keys, jnp.repeat(jnp.arange(3), SIZE))
    return np.asarray(x).reshape(3, SIZE)
