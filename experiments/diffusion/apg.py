"""APG: guidance along the estimate itself saturates; without it, only the direction changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_near
from experiments.shared.toys import estimate, of_all, of_class, of_point, samples
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.cfg import cfg

PAPER = "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models"
ENTRY = "jaxgen.families.diffusion.guidance.apg.apg"
WEIGHT, STEPS = 4.0, 8
HUGE = 1e30
GOOD, BAD = np.array([1.5, 0.5]), np.array([0.3, -0.9])


def checks() -> list[Check]:
    """Its three parts one by one, then where samples of point masses must end."""
    results = []
    cond = of_class(2)
    plain = cfg(cond, of_all(), WEIGHT)
    p, q = estimate(cond, 0.6), estimate(plain, 0.6)

    # A radius that never binds: all of the code runs, and changes no bit.
    same = estimate(apg(plain, eta=1.0, radius=HUGE), 0.6)
    results.append(below("change of x0 at eta=1, no momentum, no radius",
                       jnp.abs(same.x0 - q.x0).max(), 0.0))  # fmt: skip

    def along(x0: jax.Array) -> jax.Array:
        unit = p.x0 / jnp.linalg.norm(p.x0, axis=1, keepdims=True)
        return jnp.abs(((x0 - p.x0) * unit).sum(1)).max()

    check = "largest guidance along x0 at eta=0"
    results.append(below(check, along(estimate(apg(plain), 0.6).x0), 1e-5))
    results.append(control(below(check, along(q.x0), 1e-5)))

    def longest(x0: jax.Array) -> jax.Array:
        return jnp.linalg.norm(x0 - p.x0, axis=1).max() / (WEIGHT - 1)

    check = "longest step per weight at radius 0.2"
    short = estimate(apg(plain, eta=1.0, radius=0.2), 0.6)
    results.append(below(check, longest(short.x0), 0.2 + 1e-6))
    results.append(control(below(check, longest(q.x0), 0.2 + 1e-6)))

    # Point masses: x0 of each branch is its point, so a sampler must end at known points.
    guided = cfg(of_point(GOOD), of_point(BAD), WEIGHT)
    d = GOOD - BAD
    across = d - d @ GOOD / (GOOD @ GOOD) * GOOD
    check = "distance to good + (w - 1) across"
    results.append(below(check, _distance(apg(guided), across), 1e-4))
    results.append(control(below(check, _distance(guided, across), 1e-4)))
    momentum = -0.5
    total = d * (1 - momentum**STEPS) / (1 - momentum)
    check = "distance to the sum of a geometric series, momentum -0.5"
    moving = apg(guided, eta=1.0, momentum=momentum)
    results.append(below(check, _distance(moving, total), 1e-4))
    results.append(control(below(check, _distance(guided, total), 1e-4)))

    # Saturation: the mean length of samples, as a share of the class's own.
    lengths = {
        name: jnp.linalg.norm(samples(denoiser), axis=-1).mean(1)
        for name, denoiser in (("class", cond), ("apg", apg(plain)), ("cfg", plain))
    }
    check = "mean length at w=4 over that of the class"
    results.append(mean_near(check, lengths["apg"] / lengths["class"], 1.0, 0.1))
    results.append(control(mean_near(check, lengths["cfg"] / lengths["class"], 1.0, 0.1)))
    return results


def _distance(denoiser: Denoiser, change: np.ndarray) -> jax.Array:
    """How far samples end from good + (w - 1) change."""
    expected = GOOD + (WEIGHT - 1) * change
    return jnp.abs(samples(denoiser, steps=STEPS, count=8) - expected).max()
