"""EluCD: an off-the-shelf classifier of clean images, smoothed and calibrated, guides at x0."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, mean_above, mean_below
from experiments.shared.toys import (
    MEANS,
    PATH,
    SEEDS,
    STDS,
    WEIGHTS,
    of_all,
    points,
    posterior,
    samples,
)  # fmt: skip
from jaxgen.families.diffusion.guidance.elucd import calibration_error, elucd, softplus
from jaxgen.testing import responsibilities

PAPER = "Elucidating The Design Space of Classifier-Guided Diffusion Generation"
ENTRY = "jaxgen.families.diffusion.guidance.elucd.elucd"
LABEL, LOW, COUNT, WIDTH = 1, 0.05, 1000, 1.5

Logits = Callable[[jax.Array, jax.Array], jax.Array]


def exact(x0: jax.Array, t: jax.Array) -> jax.Array:
    """ln p(x0, class) up to a constant, [B, 3]: logits whose softmax is the posterior."""
    return _joint((x0**2).sum(-1) / 2, x0)


def network(activation: Callable[[jax.Array], jax.Array]) -> Logits:
    """The same logits with their squares made of ReLUs, WIDTH apart: a classifier of one layer."""
    knots = jnp.arange(-5.3, 5.3, WIDTH)

    def logits(x0: jax.Array, t: jax.Array) -> jax.Array:
        hidden = activation(x0[..., None] - knots)
        halves = (knots[0] - WIDTH / 2) * (x0 - knots[0]) + knots[0] ** 2 / 2
        halves += WIDTH * hidden.sum(-1)
        return _joint(halves.sum(-1), x0)

    return logits


def _joint(half_square: jax.Array, x0: jax.Array) -> jax.Array:
    """From |x0|^2 / 2 [B] and x0 [B, 2]."""
    rest = half_square[:, None] - x0 @ MEANS.T + (MEANS**2).sum(-1) / 2
    return jnp.log(jnp.asarray(WEIGHTS / STDS**2)) - rest / STDS**2


def draw(seed: int, count: int = COUNT) -> tuple[jax.Array, jax.Array]:
    """Data of the mixture and their labels: x [count, 2], [count]."""
    key = jax.random.key(seed)
    labels = jax.random.choice(key, 3, (count,), p=jnp.asarray(WEIGHTS))
    z = jax.random.normal(jax.random.fold_in(key, 1), (count, 2))
    return jnp.asarray(MEANS)[labels] + jnp.asarray(STDS)[labels][:, None] * z, labels


def cosines(logits: Logits, marginal: float = 1.0) -> list[jax.Array]:
    """Mean cosine of the guidance with the exact grad ln p(label | x_t) at t = LOW, by seed."""
    t, whole = jnp.float32(LOW), of_all()
    guided = elucd(whole, jnp.full(COUNT, LABEL), logits, marginal=marginal)

    @jax.jit
    def mean(keys: jax.Array, x: jax.Array) -> jax.Array:
        def log_prob(y: jax.Array) -> jax.Array:
            return jnp.log(responsibilities(PATH, y, t, MEANS, STDS, WEIGHTS)[:, LABEL]).sum()

        wanted = jax.grad(log_prob)(x)
        change = guided(keys, x, t)[0].x0 - whole(keys, x, t)[0].x0
        norms = jnp.linalg.norm(change, axis=1) * jnp.linalg.norm(wanted, axis=1)
        # Where the classifier is sure, there is no direction to agree with.
        unsure = jnp.linalg.norm(wanted, axis=1) > 0.05
        cosine = (change * wanted).sum(1) / jnp.maximum(norms, 1e-12)
        return jnp.where(unsure, cosine, 0).sum() / unsure.sum()

    results = []
    for seed in range(SEEDS):
        keys, noise = points(seed, COUNT)
        results.append(mean(keys, PATH.mix(draw(seed)[0], noise, t)))
    return results


def checks() -> list[Check]:
    """Directions, smoothing, temperatures, calibration, and the identity."""
    results = []
    check = "cosine with the exact gradient, exact classifier"
    results.append(mean_above(check, cosines(exact), 0.95))
    results.append(control(mean_above(check + ", no marginal", cosines(exact, 0.0), 0.95)))
    check = "cosine with the exact gradient, network of ReLUs"
    results.append(mean_above(check + " smoothed", cosines(network(softplus(3.0))), 0.95))
    results.append(control(mean_above(check, cosines(network(jax.nn.relu)), 0.95)))

    errors, dull = [], []
    for seed in range(SEEDS):
        x, labels = draw(seed, 20_000)
        probs = posterior(x)
        errors.append(calibration_error(probs, labels))
        dull.append(calibration_error(jax.nn.softmax(0.3 * jnp.log(probs)), labels))
    check = "calibration error of the posterior"
    results.append(mean_below(check, errors, 0.005))
    results.append(control(mean_below(check + " at temperature 3.3", dull, 0.005)))

    labels = jnp.full(SEEDS * COUNT, LABEL)
    plain = samples(of_all(), count=COUNT)
    share = (posterior(plain).argmax(-1) == LABEL).mean(1)
    guided = samples(elucd(of_all(), labels, exact, weight=4.0, schedule="sine"), count=COUNT)
    check = "share of samples in the class"
    results.append(mean_above(check, (posterior(guided).argmax(-1) == LABEL).mean(1), 0.5))
    results.append(control(mean_above(check, share, 0.5)))
    same = samples(elucd(of_all(), labels, exact, weight=0.0), count=COUNT)
    results.append(below("weight 0 against no guidance", jnp.abs(same - plain).max(), 0.0))
    return results
