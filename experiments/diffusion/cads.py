"""CADS: noise in the condition while x is noise brings back what strong guidance takes away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, above, below, control, mean_above, mean_near
from experiments.shared.toys import MEANS, STDS, of_all, of_mean, of_point, posterior, samples
from jaxgen.families.diffusion.guidance.cads import anneal, cads, share
from jaxgen.families.diffusion.guidance.cfg import cfg

PAPER = "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling"
ENTRY = "jaxgen.families.diffusion.guidance.cads.cads"
WEIGHT, SCALE, STEPS, LABEL = 4.0, 0.5, 4, 2


def checks() -> list[Check]:
    """The schedule, the rescaling, a variance in closed form, and diversity of guided samples."""
    results = []
    t = jnp.array([0.0, 0.6, 0.75, 0.9, 1.0])
    g = share(t, 0.6, 0.9)
    gap = jnp.abs(g - jnp.array([1, 1, 0.5, 0, 0])).max()
    results.append(below("g at 0, tau_1, between, tau_2, 1: off by", gap, 1e-6))

    y = 0.3 + 2 * jax.random.normal(jax.random.key(0), (64, 16))
    noise = jax.random.normal(jax.random.key(1), (64, 16))
    for mix, wrap in ((1.0, lambda c: c), (0.0, control)):
        out = anneal(y, noise, jnp.float32(0.3), SCALE, mix)
        worst = max(jnp.abs(out.mean(1) - y.mean(1)).max(), jnp.abs(out.std(1) - y.std(1)).max())
        results.append(wrap(below("mean and deviation of the condition: off by", worst, 1e-5)))

    # Condition y, the data a point at y: a sampler ends at its last x0, u + w (y_hat - u), and at
    # t = 1/N with tau = (0, 1) y_hat is sqrt(1 - 1/N) y + scale sqrt(1/N) noise.
    good, bad = np.array([1.5, 0.5]), np.array([0.3, -0.9])
    pair = cfg(of_mean(good, 0.0), of_point(bad), WEIGHT)
    for guided, wrap in (
        (cads(pair, low=0.0, high=1.0, scale=SCALE, mix=0.0), lambda c: c),
        (pair, control),
    ):
        out = samples(guided, steps=STEPS)
        mean = bad + WEIGHT * (np.sqrt(1 - 1 / STEPS) * good - bad)
        off = out.mean(1) - mean
        results.append(wrap(mean_near("mean of x, closed form: off by", off[:, 0], 0.0, 0.1)))
        deviation = WEIGHT * SCALE / np.sqrt(STEPS)
        results.append(
            wrap(mean_near("deviation of y, closed form", out[..., 1].std(1), deviation, 0.05))
        )

    # One class of the mixture at w=4: wider than without, and still the class.
    pair = cfg(of_mean(MEANS[LABEL], STDS[LABEL]), of_all(), WEIGHT)
    plain, annealed = samples(pair), samples(cads(pair, low=0.3, high=0.9, scale=1.0, mix=0.0))
    name = "deviation of samples over that of guidance alone"
    for out, wrap in ((annealed, lambda c: c), (samples(cads(pair, low=1.0, high=1.0)), control)):
        results.append(wrap(mean_above(name, out.std(1).mean(1) / plain.std(1).mean(1), 1.2)))
    right = (posterior(annealed).argmax(-1) == LABEL).mean(1)
    results.append(above("share of samples in the class, worst seed", right.min(), 0.99))
    return results
