"""Searching noises: best-of-N is an order statistic; zero-order search climbs a known slope."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_near
from experiments.shared.toys import SEEDS
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import as_chain, integrate
from jaxgen.steer.paths import over_paths
from jaxgen.steer.search import Search, best_of, zero_order
from jaxgen.testing import gaussian_denoiser

PAPER = "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps"
ENTRY = "jaxgen.steer.search.zero_order"

PATH, STEPS, COUNT = linear(), 8, 500
MEAN, STD = 0.7, 0.5
SLOPE = np.array([1.0, -2.0]) / 5**0.5
ATTEMPTS, ROUNDS, NEIGHBOURS = 16, 15, 4


def generate(keys: jax.Array, noise: jax.Array) -> jax.Array:
    """Euler's sampler of N(MEAN, STD^2 I): an affine map of its noise [B, 2]."""
    data = gaussian_denoiser(PATH, MEAN, STD)
    return integrate(solvers.euler(PATH), data, noise, grids.uniform(STEPS, PATH), keys)


def reward(x: jax.Array) -> jax.Array:
    """A linear verifier of unit slope."""
    return x @ SLOPE


def largest(count: int) -> float:
    """The mean of the largest of `count` standard normals, by quadrature in float64."""
    z = np.linspace(-9, 9, 20001)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (z[1] - z[0])
    return float((z * count * density * below ** (count - 1)).sum() * (z[1] - z[0]))


def spread(results: Search) -> tuple[np.ndarray, np.ndarray]:
    """Mean best rewards [seeds], in deviations of one sample's, and the traces' smallest rise."""
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), COUNT) for s in range(SEEDS)])
    _, score, trace = jax.jit(results.traced)(keys)
    zero = jnp.zeros((1, 2))
    unit = generate(keys[:1], jnp.asarray(SLOPE, jnp.float32)[None]) - generate(keys[:1], zero)
    centre, scale = reward(generate(keys[:1], zero))[0], jnp.linalg.norm(unit)
    best = (score.reshape(SEEDS, COUNT).mean(1) - centre) / scale
    return np.asarray(best), np.asarray(trace)


def checks() -> list[Check]:
    """Order statistics, rising rewards, and more than best-of-N for the same budget."""
    data, grid = gaussian_denoiser(PATH, MEAN, STD), grids.uniform(STEPS, PATH)
    flow = as_chain(solvers.euler(PATH), data, grid, (2,), PATH)
    results = []
    random, _ = spread(best_of(flow, reward, count=ATTEMPTS))
    single, _ = spread(best_of(flow, reward, count=1))
    check = f"best of {ATTEMPTS}: mean reward in deviations"
    results.append(mean_near(check, random, largest(ATTEMPTS), 0.06))
    results.append(control(mean_near(check, single, largest(ATTEMPTS), 0.06)))

    options = {"rounds": ROUNDS, "neighbours": NEIGHBOURS}
    local = zero_order(flow, reward, radius=0.4, **options)
    climbed, trace = spread(local)
    results.append(
        below("zero-order: largest fall of the reward", -np.diff(trace, axis=0).min(), 0)
    )
    # As many samples, all independent: radius = 1 is random search.
    check, bound = "zero-order: mean reward in deviations", largest(1 + ROUNDS * NEIGHBOURS) + 0.5
    results.append(mean_above(check, climbed, bound))
    blind, _ = spread(zero_order(flow, reward, radius=1.0, **options))
    results.append(control(mean_above(check, blind, bound)))
    results.append(mean_near("radius 1: as best of 61", blind, largest(61), 0.06))
    return results + of_paths()


def of_paths() -> list[Check]:
    """Search over paths beats best-of-N of as many calls."""
    chain = as_chain(
        solvers.ddim(PATH, 1.0), gaussian_denoiser(PATH, MEAN, STD), grids.uniform(STEPS, PATH),
        (2,), PATH,
    )  # fmt: skip
    many = over_paths(chain, reward, width=2, branches=4, start=4, stride=1, back=1)
    blind = best_of(chain, reward, count=round(many.calls / STEPS))
    keys = jax.random.split(jax.random.key(0), SEEDS * COUNT)
    results = []
    searches = {"paths": many, f"best of {blind.evaluations}": blind}
    for name, search in searches.items():
        wrap = (lambda check: check) if search is many else control
        score = np.asarray(jax.jit(search.traced)(keys)[1]).reshape(SEEDS, COUNT).mean(1)
        results.append(wrap(mean_above(f"{name}: reward after {many.calls:g} calls", score, 0.42)))
    return results
