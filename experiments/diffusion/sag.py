"""SAG: blurring an estimate where one attends, on a Gaussian row of pixels with a planted map."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.affine import Affine, eps_of, euler_law
from experiments.shared.check import Check, above, below, control, mean_near
from experiments.shared.toys import PATH, SEEDS
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Attending, Denoiser
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.guidance.sag import blurred, sag
from jaxgen.testing import gaussian_denoiser

PAPER = "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance"
ENTRY = "jaxgen.families.diffusion.guidance.sag.sag"

MEAN = np.array([0.2, 0.9, -0.4, 0.6, 1.1, 0.1])
STD, SCALE, BLUR, COUNT = 0.5, 1.5, 0.8, 1000
SEEN = np.array([0.5, 1.9, 0.6])
"""The map, of half the row's resolution: pixels 2 and 3 are attended to."""
MASK, ALL = np.repeat(SEEN > 1, 2), np.ones(6, bool)
GRID = np.asarray(grids.uniform(24, PATH), np.float64)


def planted() -> Denoiser:
    """The exact denoiser of N(MEAN, STD^2), with the map of one layer, "middle"."""
    plain = gaussian_denoiser(PATH, jnp.asarray(MEAN, jnp.float32), STD)

    def attend(layer: int | str) -> Attending:
        assert layer == "middle"

        def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
            return *plain(keys, x, t, memory), jnp.tile(jnp.asarray(SEEN), (x.shape[0], 1))

        return call

    return dataclasses.replace(plain, attend=attend)


def drawn(denoiser: Denoiser) -> np.ndarray:
    """Samples of Euler's method, [SEEDS, COUNT, N]."""
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), COUNT) for s in range(SEEDS)])
    grid = jnp.asarray(GRID, jnp.float32)

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        x = prior(PATH, keys, MEAN.shape)
        return integrate(solvers.euler(PATH), denoiser, x, grid, keys)

    return np.asarray(run(keys)).reshape(SEEDS, COUNT, -1)


def distribution(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of guided samples, by matrices: blurring is one."""
    places = np.arange(len(MEAN))
    soft = np.exp(-0.5 * ((places[:, None] - places) / BLUR) ** 2)
    soft /= soft.sum(1, keepdims=True)
    change = mask[:, None] * (soft - np.eye(len(MEAN)))

    def velocity(t: float) -> Affine:
        eps = eps_of(MEAN, STD**2 * np.eye(len(MEAN)), t)
        gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
        x0 = Affine(gain * np.eye(len(MEAN)), MEAN - (1 - t) * gain * MEAN)
        worse = Affine(np.eye(len(MEAN)), np.zeros(len(MEAN))) + Affine(
            (1 - t) * change, np.zeros(len(MEAN))
        ).after(x0)
        push = (eps + eps.after(worse) * -1) * SCALE
        # At t = 1 nothing can move x0: push is 0 there, too.
        return eps + push + (x0 + push * (-t / max(1 - t, 1e-9))) * -1

    return euler_law(velocity, GRID, len(MEAN))


def checks() -> list[Check]:
    """Which pixels change, the law of guided samples, and the identities."""
    results = []
    cond = planted()
    options: dict[str, Any] = dict(scale=SCALE, blur=BLUR)
    masked, everywhere = sag(cond, layer="middle", **options), sag(cond, **options)

    keys = jax.random.split(jax.random.key(0), 64)
    x, t = jax.random.normal(jax.random.key(1), (64, len(MEAN))), jnp.float32(0.6)
    plain = cond(keys, x, t)[0].eps

    def moved(denoiser: Denoiser, where: np.ndarray) -> float:
        return float(jnp.abs(denoiser(keys, x, t)[0].eps - plain)[:, where].max())

    check = "largest change of eps where the map is low"
    results.append(below(check, moved(masked, ~MASK), 0.0))
    results.append(control(below(check + ", without the map", moved(everywhere, ~MASK), 0.0)))
    results.append(above("and where it is high", moved(masked, MASK), 0.1))
    high = sag(cond, layer="middle", threshold=2.0)
    results.append(below("change at a threshold that nothing exceeds", moved(high, ALL), 0.0))
    results.append(below("change at scale 0", moved(sag(cond, scale=0.0), ALL), 0.0))
    flat = jnp.full((2, len(MEAN)), 0.7)
    results.append(below("blur of a constant", jnp.abs(blurred(flat, BLUR) - flat).max(), 1e-6))

    # Contrast: the attended pixels against their neighbours.
    unguided = drawn(cond)
    for name, denoiser, mask in (("SAG", masked, MASK), ("blur guidance", everywhere, ALL)):
        mean, cov = distribution(mask)
        edge = np.array([0, -1.0, 1.0, 0, 0, 0])
        out = drawn(denoiser)
        for sampled, wrap in ((out, lambda c: c), (unguided, control)):
            along = sampled @ edge
            results.append(
                wrap(mean_near(f"{name}: mean of the edge", along.mean(1), edge @ mean, 0.06))
            )
            deviation = (edge @ cov @ edge) ** 0.5
            results.append(wrap(mean_near(f"{name}: its deviation", along.std(1), deviation, 0.05)))
    return results
