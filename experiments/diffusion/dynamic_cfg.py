"""Dynamic guidance: each sample takes, at each step, the weight that an evaluator likes best."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.toys import SEEDS, estimate, of_all, of_class, of_point, samples
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg

PAPER = "Dynamic Classifier-Free Diffusion Guidance via Online Feedback"
ENTRY = "jaxgen.families.diffusion.guidance.dynamic_cfg.dynamic_cfg"
CANDIDATES = (1.0, 1.5, 2.0, 3.0, 5.0)
GOOD, BAD = np.array([1.5, 0.5]), np.array([0.3, -0.9])


def checks() -> list[Check]:
    """Against brute force at single steps, and where samples of point masses must end."""
    results = []
    cond, uncond = of_class(2), of_all()

    def wish(x0: jax.Array, t: jax.Array) -> jax.Array:
        # One wish a sample: most of them have different best weights.
        goal = jnp.stack([jnp.linspace(-2, 2, len(x0)), jnp.linspace(-3, 1, len(x0))], 1)
        return -((x0 - goal) ** 2).sum(1)

    fixed, chosen = cfg(cond, uncond, 3.0), dynamic_cfg(cfg(cond, uncond), wish, weights=CANDIDATES)
    gaps = {"dynamic": 0.0, "fixed": 0.0}
    for seed in range(SEEDS):
        for t in (0.9, 0.5, 0.2):
            tried = np.stack([estimate(cfg(cond, uncond, w), t, seed).x0 for w in CANDIDATES])
            score = [np.asarray(wish(jnp.asarray(x0), jnp.float32(t))) for x0 in tried]
            best = tried[np.argmax(score, axis=0), np.arange(tried.shape[1])]
            for name, denoiser in (("dynamic", chosen), ("fixed", fixed)):
                gap = np.abs(estimate(denoiser, t, seed).x0 - best).max()
                gaps[name] = max(gaps[name], float(gap))
    check = f"x0 against the best of all weights, worst of {SEEDS} seeds and 3 times"
    results.append(below(check, gaps["dynamic"], 1e-6))
    results.append(control(below(check, gaps["fixed"], 1e-6)))

    single = samples(dynamic_cfg(cfg(cond, uncond), wish, weights=(3.0,)), count=64)
    plain = samples(fixed, count=64)
    results.append(
        below("one weight to choose from, against CFG", jnp.abs(single - plain).max(), 0.0)
    )

    # Point masses: x0 is bad + w (good - bad). The goal is at w = 2.2, the nearest candidate 2.
    goal = BAD + 2.2 * (GOOD - BAD)

    def near(x0: jax.Array, t: jax.Array) -> jax.Array:
        return -((x0 - goal) ** 2).sum(1)

    pair = cfg(of_point(GOOD), of_point(BAD), 3.0)
    check = "distance to bad + 2 (good - bad), the candidate nearest to the goal"
    end = BAD + 2 * (GOOD - BAD)
    out = samples(dynamic_cfg(pair, near, weights=CANDIDATES), steps=8, count=8)
    results.append(below(check, jnp.abs(out - end).max(), 1e-5))
    results.append(
        control(below(check, jnp.abs(samples(pair, steps=8, count=8) - end).max(), 1e-5))
    )
    return results
