"""GAN: the optimal discriminator, the value of the game, a Gaussian learned, both slopes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import Identity, fit, fit_judge
from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial, head, loss
from jaxgen.families.adversarial.players import Discriminator
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages

PAPER = "Generative Adversarial Networks"
ENTRY = "jaxgen.families.adversarial.adversarial"
DATA, MODEL = np.array([10, 6, 3, 1]), np.array([2, 4, 4, 10])  # counts of 20
MEAN, STD = 2.0, 0.5


def checks() -> list[Check]:
    """A table, a Gaussian, and gradients at a discriminator that is never fooled."""
    results = []
    judge = Discriminator(Identity(), head.unconditional())
    rule = loss.non_saturating()

    def table(counts: np.ndarray) -> jax.Array:
        return jnp.eye(4)[np.repeat(np.arange(4), counts)]

    for name, model in (("another law", MODEL), ("the data's own law", DATA)):
        params = fit_judge(judge, rule, table(DATA), table(model), 600, optax.adam(0.03))
        logits = judge.apply({"params": params}, jnp.eye(4), jnp.zeros(4, jnp.int32)).logits
        best = DATA / (DATA + model)
        error = np.abs(jax.nn.sigmoid(logits) - best).max()
        results.append(below(f"D against p / (p + q), {name}", error, 1e-3))
        p, q = DATA / 20, model / 20
        js = sum(0.5 * (a * np.log(2 * a / (p + q))).sum() for a in (p, q))
        judged = [
            judge.apply({"params": params}, table(c), jnp.zeros(20, int)).logits
            for c in (DATA, model)
        ]
        value = -rule.discriminator(*judged)
        results.append(near(f"value of the game, {name}", value, 2 * js - np.log(4), 1e-4))

    learned, frozen = gaussian(1.0), gaussian(0.0)
    results += [
        near("mean of the generator", learned[0], MEAN, 0.1),
        near("deviation of the generator", learned[1], STD, 0.1),
        control(near("mean, a discriminator that does not learn", frozen[0], MEAN, 0.1)),
    ]

    # D(x) = -40 on every fake: the minimax loss has no slope left, the other has all of it.
    slope = {}
    for name in ("saturating", "non_saturating"):
        lost = jax.grad(getattr(loss, name)().generator)(jnp.full(1, -40.0))
        slope[name] = abs(float(lost[0]))
    results.append(below("slope of log(1 - D) where D sees through", slope["saturating"], 1e-15))
    results.append(near("slope of -log D there", slope["non_saturating"], 1.0, 1e-6))
    return results


def gaussian(rate: float) -> np.ndarray:
    """Mean and deviation of a generator a z + b, the discriminator's learning rate scaled."""
    method = adversarial(
        Spec((1,), 1, None),
        {
            "generator": MLPGenerator((1,), 1, depth=0, conditional=False, squash=False),
            "discriminator": MLPDiscriminator(16, 2),
        },
        {
            "generator": optax.adam(3e-3, b1=0.0, b2=0.99),
            "discriminator": optax.adam(3e-3 * rate, b1=0.0, b2=0.99),
        },
        Averages(half_life=(10_000,)),
        head="unconditional",
        regularisers=(dict(name="r1", weight=0.5),),
        latent=dict(name="normal", size=1),
    )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        x = MEAN + STD * jax.random.normal(key, (64, 1))
        return {"image": x, "label": jnp.zeros(64, jnp.int32)}

    state = quick_jit(lambda: fit(method, draw, 1500))()
    params = state.ema["half_life_10000"]
    keys = jax.random.split(jax.random.key(9), 4000)
    x = np.asarray(method.sampler().fn(params, keys, jnp.zeros(4000, jnp.int32)))
    return np.array([x.mean(), x.std()])
