"""Wasserstein GAN: the critic's gap is a distance, and it still has a slope where JS has none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import Identity, fit, fit_judge
from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial, head, loss, regularisers
from jaxgen.families.adversarial.players import Discriminator
from jaxgen.families.adversarial.regularisers import Case
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages

PAPER = "Wasserstein GAN"
ENTRY = "jaxgen.families.adversarial.loss.wasserstein"
BOUND = 0.01


def checks() -> list[Check]:
    """Point masses, two samples on the line, and a generator trained by a clipped critic."""
    results = []
    line = Discriminator(Identity(), head.unconditional())
    terms, clip = loss.wasserstein(), regularisers.clip(BOUND)
    logistic = loss.saturating()
    none = jnp.zeros(8, jnp.int32)
    gaps, slopes, values, flat = [], [], [], []
    for theta in (0.25, -1.0, 3.0):
        real, fake = jnp.zeros((8, 1)), jnp.full((8, 1), theta)

        def judge(params: Any, x: jax.Array) -> jax.Array:
            return line.apply({"params": params}, x, none).logits

        p = fit_judge(line, terms, real, fake, 300, optax.rmsprop(1e-3), project=clip.project)
        gaps.append(
            float(-terms.discriminator(judge(p, real), judge(p, fake))) / (BOUND * abs(theta))
        )
        slopes.append(float(jax.grad(lambda x, p=p: terms.generator(judge(p, x)))(fake).sum()))
        # The minimax game on the same masses: log 2 at any distance, and no slope.
        p = fit_judge(line, logistic, real, fake, 3000, optax.adam(0.3))
        value = -logistic.discriminator(judge(p, real), judge(p, fake))
        values.append(float(value + np.log(4)) / 2)
        flat.append(
            abs(float(jax.grad(lambda x, p=p: logistic.generator(judge(p, x)))(fake).sum()))
        )
    results += [
        below("gap over bound |theta|, from 1", np.abs(np.array(gaps) - 1).max(), 1e-3),
        above(
            "least slope of the generator's loss, over the bound",
            np.abs(slopes).min() / BOUND,
            0.999,
        ),
        below("Jensen-Shannon from log 2", np.abs(np.array(values) - np.log(2)).max(), 1e-3),
        below("largest slope of the minimax loss", max(flat), 0.05),
    ]

    # Two samples on the line: the critic under a gradient penalty against sorted differences.
    rng = np.random.default_rng(0)
    real = jnp.asarray(rng.normal(size=(256, 1)), jnp.float32)
    fake = jnp.asarray(rng.exponential(size=(256, 1)) * 2 - 0.5, jnp.float32)
    exact = float(np.abs(np.sort(real, 0) - np.sort(fake, 0)).mean())
    critic = Discriminator(MLPDiscriminator(32, 2), head.unconditional())
    rule = regularisers.gradient_penalty(30.0)
    labels = jnp.zeros(256, jnp.int32)

    def penalty(params: Any, key: jax.Array) -> jax.Array:
        key_a, key_b = jax.random.split(key)
        # Any pairing of the two samples: the slope is asked for all over the hull.
        mixed = jax.random.permutation(key_a, fake)
        given = Case(
            lambda x, y: critic.apply({"params": params}, x, y).logits,
            real,
            mixed,
            labels,
            jax.random.split(key_b, 256),
            None,
        )
        assert rule.penalty is not None
        return rule.penalty(given)

    for name, extra in (("with the penalty", penalty), ("without", None)):
        options: Any = {} if extra is None else {"penalty": extra}
        p = fit_judge(critic, terms, real, fake, 1000, optax.adam(2e-3), **options)
        judged = [critic.apply({"params": p}, x, labels).logits for x in (real, fake)]
        ratio = float(-terms.discriminator(*judged)) / exact
        # |slope| = 1 holds up to the penalty's softness: 1 / (2 weight) a unit of density.
        results.append(
            near(f"gap over W1, {name}", ratio, 1.0, 0.1)
            if extra
            else above(f"gap over W1, {name}", ratio, 2.0)
        )

    learned = trained(1.0)
    results.append(near("mean of the generator after clipped training", learned, 1.5, 0.15))
    results.append(
        control(near("its mean when the critic does not learn", trained(0.0), 1.5, 0.15))
    )
    return results


def trained(rate: float) -> float:
    """The generator's mean on N(1.5, 0.5^2), five critic steps each."""
    method = adversarial(
        Spec((1,), 1, None),
        {
            "generator": MLPGenerator((1,), 1, depth=0, conditional=False, squash=False),
            "discriminator": MLPDiscriminator(32, 1),
        },
        {"generator": optax.rmsprop(3e-3), "discriminator": optax.rmsprop(3e-3 * rate)},
        Averages(half_life=(20_000,)),
        loss="wasserstein",
        head="unconditional",
        regularisers=(dict(name="clip", bound=0.1),),
        latent=dict(name="normal", size=1),
        discriminator_steps=5,
    )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        x = 1.5 + 0.5 * jax.random.normal(key, (320, 1))
        return {"image": x, "label": jnp.zeros(320, jnp.int32)}

    params = quick_jit(lambda: fit(method, draw, 1200))().ema["half_life_20000"]
    keys = jax.random.split(jax.random.key(9), 4000)
    return float(np.mean(method.sampler().fn(params, keys, jnp.zeros(4000, jnp.int32))))
