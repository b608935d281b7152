"""Event sampling: conditional Gaussians in closed form, a tail of a mixture against rejection."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.check import Check, control, mean_above, mean_near
from experiments.diffusion.toys import MEANS, PATH, SEEDS, STDS, WEIGHTS, of_all, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.guidance.event import above, equals, log_probability
from jaxgen.families.diffusion.guidance.universal import universal
from jaxgen.testing import gaussian_denoiser

PAPER = (
    "User-defined Event Sampling and Uncertainty Quantification in Diffusion Models for Physical "
    "Dynamical Systems"
)
ENTRY = "jaxgen.families.diffusion.guidance.event.equals"

MEAN, STD, SEEN, NOISE = 0.4, 0.8, 1.5, 0.4
WAY = np.array([0.6, -0.8])
CENTRE, RADIUS = np.array([-0.5, 0.4]), 2.0


def along(x: jax.Array) -> jax.Array:
    """A linear quantity."""
    return x @ WAY


def distance(x: jax.Array) -> jax.Array:
    """A quantity that is not linear: from a point off all modes."""
    return jnp.sqrt(((x - CENTRE) ** 2).sum(-1) + 1e-6)


def fit(x0: jax.Array, t: jax.Array) -> jax.Array:
    """The constraint alone, as if the estimate were the sample: what DPS follows."""
    return -0.5 * (along(x0) - SEEN) ** 2 / NOISE**2


def linear() -> list[Check]:
    """Mean and deviation along the event's direction, for a Gaussian."""
    prior = gaussian_denoiser(PATH, MEAN, STD)
    precision = 1 / STD**2 + 1 / NOISE**2
    mean = (MEAN * WAY.sum() / STD**2 + SEEN / NOISE**2) / precision
    found = []
    ways = {
        "event": equals(prior, along, SEEN, noise=NOISE),
        "constraint alone": universal(prior, fit),
    }
    for name, guided in ways.items():
        wrap = (lambda check: check) if name == "event" else control
        x = np.asarray(samples(guided, solver=solvers.heun(PATH)))
        out = x @ WAY
        found.append(wrap(mean_near(f"Gaussian, {name}: mean", out.mean(1), mean, 0.03)))
        found.append(
            wrap(mean_near(f"Gaussian, {name}: deviation", out.std(1), precision**-0.5, 0.03))
        )
        if name == "event":
            other = (x @ np.array([0.8, 0.6])).std(1)
            found.append(mean_near("Gaussian, event: deviation across", other, STD, 0.05))
    return found


def tail() -> list[Check]:
    """A Gaussian's tail is a truncated normal; far from a point, a mixture is where it should be.

    How the mixture lies there is not checked: its moments come out off by up to half a deviation.
    """
    centre, edge = MEAN * WAY.sum(), 1.0
    z = (edge - centre) / STD
    ratio = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(z / math.sqrt(2)))
    found = []
    for weight, wrap in ((1.0, lambda check: check), (0.0, control)):
        guided = above(gaussian_denoiser(PATH, MEAN, STD), along, edge, weight=weight)
        out = np.asarray(samples(guided, solver=solvers.heun(PATH))) @ WAY
        name = f"tail of a Gaussian, weight {weight:g}"
        found.append(wrap(mean_near(f"{name}: mean", out.mean(1), centre + STD * ratio, 0.05)))
        deviation = STD * math.sqrt(1 + z * ratio - ratio**2)
        found.append(wrap(mean_near(f"{name}: deviation", out.std(1), deviation, 0.06)))
        far = above(of_all(), distance, RADIUS, weight=weight)
        x = np.asarray(samples(far, solver=solvers.ddim(PATH, 1.0)))
        inside = (np.sqrt(((x - CENTRE) ** 2).sum(-1)) > RADIUS).mean(1)
        found.append(wrap(mean_above(f"mixture, weight {weight:g}: in the event", inside, 0.95)))
    return found


def probability() -> list[Check]:
    """P(x_1 > 1) of the mixture, from where half of x_t is noise."""
    exact = sum(
        w * 0.5 * math.erfc((1.0 - m[0]) / s / 2**0.5)
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    keys = jax.random.split(jax.random.key(1), 4000 * SEEDS)
    t = jnp.float32(0.5)
    which = jax.random.categorical(keys[0], jnp.log(WEIGHTS), shape=(len(keys),))
    normal = jax.random.normal(keys[1], (2, len(keys), 2))
    data = jnp.asarray(MEANS)[which] + jnp.asarray(STDS)[which, None] * normal[0]
    x = PATH.mix(data, normal[1], t)
    found = jnp.exp(log_probability(of_all(), lambda y: y[:, 0], 1.0, keys, x, t))
    guess = of_all()(keys, x, t)[0].x0[:, 0] > 1.0
    out = [mean_near("P(x_1 > 1)", np.asarray(found).reshape(SEEDS, -1).mean(1), exact, 0.02)]
    name = "P(x_1 > 1), of the estimates alone"
    return [
        *out,
        control(mean_near(name, np.asarray(guess).reshape(SEEDS, -1).mean(1), exact, 0.02)),
    ]


def checks() -> list[Check]:
    """Equality on a Gaussian, a tail of a mixture, and the probability of an event."""
    return linear() + tail() + probability()
