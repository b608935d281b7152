"""Semantic diffusion guidance: a time-aware likelihood turns the prior into the posterior."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, mean_near
from experiments.shared.toys import PATH, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.guidance.semantic import sdg
from jaxgen.testing import gaussian_denoiser

PAPER = "More Control for Free! Image Synthesis with Semantic Diffusion Guidance"
ENTRY = "jaxgen.families.diffusion.guidance.semantic.sdg"
MEAN, STD, NOISE = 0.4, 0.8, 0.5
SEEN = (1.5, -0.6)


def likelihood(axis: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """ln p(y | x_t) of y = x0[axis] + N(0, NOISE^2): what a noise-aware encoder would know."""
    prior = gaussian_denoiser(PATH, MEAN, STD)

    def similarity(x: jax.Array, t: jax.Array) -> jax.Array:
        x0 = prior(jax.random.split(jax.random.key(0), len(x)), x, t)[0].x0[:, axis]
        alpha, sigma = PATH.alpha(t), PATH.sigma(t)
        rest = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
        return -0.5 * (SEEN[axis] - x0) ** 2 / (NOISE**2 + rest)

    return similarity


def clean(axis: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same likelihood as if every image were clean: the encoder that is not noise-aware."""
    return lambda x, t: -0.5 * (SEEN[axis] - x[:, axis]) ** 2 / NOISE**2


def checks() -> list[Check]:
    """Mean and deviation against the posterior; two guidances add up; weight 0 is the prior."""
    results = []
    prior = gaussian_denoiser(PATH, MEAN, STD)
    precision = 1 / STD**2 + 1 / NOISE**2
    means = [(MEAN / STD**2 + y / NOISE**2) / precision for y in SEEN]
    deviation = precision**-0.5
    for source, wrap in ((likelihood, lambda check: check), (clean, control)):
        both = sdg(sdg(prior, PATH, source(0)), PATH, source(1))
        out = samples(both, solver=solvers.heun(PATH))
        for axis in (0, 1):
            value = out[..., axis]
            name = f"posterior mean, guidance {axis + 1} of 2"
            results.append(wrap(mean_near(name, value.mean(1), means[axis], 0.04)))
        results.append(wrap(mean_near("posterior deviation", value.std(1), deviation, 0.04)))
    half = samples(sdg(prior, PATH, likelihood(0)), solver=solvers.heun(PATH))
    results.append(mean_near("mean where nothing was seen", half[..., 1].mean(1), MEAN, 0.06))
    same = samples(sdg(prior, PATH, likelihood(0), weight=0.0))
    gap = jnp.abs(same - samples(prior)).max()
    results.append(below("weight 0 against the prior", gap, 0.0))
    return results
