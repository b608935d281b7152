"""Improved GANs: inception score, smoothing's optimum, batches seen whole, a game that settles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import Identity, fit_judge
from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import head, loss, regularisers
from jaxgen.families.adversarial.players import Discriminator, judgement_loss
from jaxgen.families.adversarial.regularisers import Case
from jaxgen.method import minimise
from jaxgen.metrics.scores.inception_score import inception_score, score_sums
from jaxgen.nn.gan_layers import MinibatchDiscrimination

PAPER = "Improved Techniques for Training GANs"
ENTRY = "jaxgen.families.adversarial.regularisers.minibatch_discrimination"
DATA, MODEL = np.array([10, 6, 3, 1]), np.array([2, 4, 4, 10])  # counts of 20
SMOOTHING, WEIGHT, RATE = 0.1, 0.5, 0.02


def checks() -> list[Check]:
    """What each technique is for, on the smallest problem that has an exact answer."""
    return [*score(), *smoothing(), *matching(), *batches(), *history()]


def score() -> list[Check]:
    """exp(H(y) - E H(y|x)) of 7 classes."""
    predictions = np.eye(7), np.tile(np.eye(7)[:1], (7, 1))
    value = [inception_score(score_sums(p)) for p in predictions]
    return [
        near("inception score of balanced one-hot predictions of 7", value[0], 7, 1e-9),
        near("that of one prediction for all", value[1], 1, 1e-9),
    ]


def smoothing() -> list[Check]:
    """D = a p / (p + q), a = 0.9, on a table of four."""
    judge, best = Discriminator(Identity(), head.unconditional()), DATA / (DATA + MODEL)
    table = lambda counts: jnp.eye(4)[np.repeat(np.arange(4), counts)]
    errors = []
    for amount in (SMOOTHING, 0.0):
        game, tx = loss.non_saturating(amount), optax.adam(0.03)
        params = fit_judge(judge, game, table(DATA), table(MODEL), 600, tx)
        logits = judge.apply({"params": params}, jnp.eye(4), jnp.zeros(4, jnp.int32)).logits
        errors.append(np.abs(jax.nn.sigmoid(logits) - (1 - SMOOTHING) * best).max())
    return [
        below("D against a p / (p + q)", errors[0], 1e-3),
        control(below("the same of a D without smoothing", errors[1], 1e-3)),
    ]


def matching() -> list[Check]:
    """Of the features x, the generator's own gradient is 2 (E G - E x) / batch, whatever D says."""
    rng = np.random.default_rng(0)
    real, fake = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 6, 3)))
    rule, features = regularisers.feature_matching(1.0), lambda x, y: x
    assert rule.generator is not None
    term = rule.generator
    none = jnp.zeros(6, jnp.int32)
    case = Case(lambda x, y: x[:, 0], real, fake, none, none, None, features=features)
    of = lambda x: term(case._replace(fake=x))
    wanted = np.broadcast_to(2 * (fake.mean(0) - real.mean(0)) / 6, (6, 3))
    return [
        below("error of feature matching's slope", np.abs(jax.grad(of)(fake) - wanted).max(), 1e-6)
    ]


def batches() -> list[Check]:
    """Fakes of a batch are all alike, and over all batches have the data's own law."""
    labels = jnp.zeros(16, jnp.int32)

    def value(layers: tuple[MinibatchDiscrimination, ...]) -> float:
        judge = Discriminator(Identity(), head.unconditional(), layers)

        def of(params: dict, key: jax.Array) -> jax.Array:
            a, b = jax.random.split(key)
            real = jax.random.rademacher(a, (16, 1), jnp.float32)
            fake = jnp.broadcast_to(jax.random.rademacher(b, (1, 1), jnp.float32), (16, 1))
            said = [judge.apply({"params": params}, x, labels) for x in (real, fake)]
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *said)
            return judgement_loss(loss.non_saturating(), both)[0]

        def run() -> jax.Array:
            params = judge.init(jax.random.key(0), jnp.zeros((16, 1)), labels)["params"]
            keys = jax.random.split(jax.random.key(1), 400)
            return minimise(of, optax.adam(0.03), params, keys)[1]

        return float(quick_jit(run)()[-50:].mean() / (2 * np.log(2)))

    return [
        below(
            "D's loss over 2 ln 2, batches seen whole", value((MinibatchDiscrimination(4, 2),)), 0.1
        ),
        control(below("the same, one image at a time", value(()), 0.1)),
    ]


def history() -> list[Check]:
    """min over x, max over y of x y: simultaneous steps circle, unless drawn to their averages.

    With weight w the mean moves as theta = 2 w (2 w - J)^-1 mean, J a quarter turn, so that the
    radius falls as n^(-1 / (1 + 4 w^2)), n the number of steps.
    """

    def radii(weight: float) -> np.ndarray:
        rule = regularisers.historical_averaging(weight)
        assert rule.weights is not None and rule.start is not None and rule.follow is not None
        weights, follow = rule.weights, rule.follow
        first = {"generator": {"w": jnp.float32(1)}, "discriminator": {"w": jnp.float32(0.5)}}

        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            x, y = (params[n]["w"] for n in ("generator", "discriminator"))
            pull = {n: jax.grad(weights)(params[n], state[n])["w"] for n in params}
            params = {
                "generator": {"w": x - RATE * (y + pull["generator"])},
                "discriminator": {"w": y + RATE * (x - pull["discriminator"])},
            }
            state = follow(state, {}, params)
            return (params, state), jnp.hypot(
                params["generator"]["w"], params["discriminator"]["w"]
            )

        run = lambda: jax.lax.scan(step, (first, rule.start(first)), None, length=20_000)[1]
        return np.asarray(jax.jit(run)())

    drawn, free = radii(WEIGHT), radii(1e-9)
    power = np.log(drawn[19_999] / drawn[4_999]) / np.log(4)
    return [
        near("power by which the radius falls", power, -1 / (1 + 4 * WEIGHT**2), 0.03),
        control(below("last radius without averages, over the first", free[-1] / free[0], 0.5)),
        above("what it has grown by", free[-1] / free[0], 1.0),
    ]
