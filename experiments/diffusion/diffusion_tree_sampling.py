"""Diffusion tree sampling: a mixture tilted by a linear reward; search against best-of-N."""

from __future__ import annotations

import jax
import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_near
from experiments.shared.toys import PATH, SEEDS, of_draws, posterior, tilted
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.sampler import as_chain
from jaxgen.steer.search import best_of
from jaxgen.steer.tree import tree_sampling, tree_search

PAPER = "Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models"
ENTRY = "jaxgen.steer.tree.tree_sampling"

# Six steps whose law is exactly the data's, so that all errors are the tree's.
STEPS, BUDGET, TREES = 6, 240, 60
STRENGTH, SLOPE = 2.0, np.array([0.8, -0.5])
CHAIN = as_chain(solvers.ddim(PATH, 1.0), of_draws(), grids.uniform(STEPS, PATH), (2,), PATH)
KEYS = jax.random.split(jax.random.key(0), SEEDS * TREES)


def reward(x: jax.Array) -> jax.Array:
    """Linear, so that exp(STRENGTH reward) shifts Gaussians and reweighs modes."""
    return x @ SLOPE


def means(values: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Weighted means [seeds] over the leaves of each tree, then over a seed's trees."""
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    shares = (weights * values).sum(1) / weights.sum(1)
    return shares.reshape(SEEDS, -1).mean(1)


def checks() -> list[Check]:
    """The mean and a mode's share of the tilted law; the weights' sum; the highest reward."""
    direction = SLOPE / np.linalg.norm(SLOPE)
    centres, share = tilted(STRENGTH * SLOPE)
    sampling = tree_sampling(CHAIN, reward, budget=BUDGET, strength=STRENGTH)
    leaves = jax.tree.map(np.asarray, jax.jit(sampling.grow)(KEYS))
    along, mode = leaves.x @ direction, np.asarray(posterior(leaves.x))[..., 2]
    there = np.isfinite(leaves.log_weights)
    cases = {
        "a walk": leaves.log_weights,
        "the first leaf": np.where(there.cumsum(1) * there == 1, 0.0, -np.inf),
        "leaves, all alike": np.where(there, 0.0, -np.inf),
    }
    results = []
    for name, log_weights in cases.items():
        wrap = (lambda check: check) if name == "a walk" else control
        mean, third = means(along, log_weights), means(mode, log_weights)
        exact = float(share @ centres @ direction)
        results.append(wrap(mean_near(f"{name}: mean along the reward", mean, exact, 0.1)))
        results.append(wrap(mean_near(f"{name}: share of a mode", third, float(share[2]), 0.05)))
    # The leaves' weights come from the numbers of children, the root's value from its children's.
    off = np.abs(np.exp(leaves.log_weights).sum(1) - 1).max()
    results.append(below("all walks: largest error of their sum", off, 1e-4))

    blind = best_of(CHAIN, reward, count=BUDGET // STEPS)
    greedy = tree_search(CHAIN, reward, budget=BUDGET)
    scores = {
        "best-of-N": np.asarray(jax.jit(blind.traced)(KEYS)[1]),
        "search": np.asarray(jax.jit(greedy.fn)(KEYS)) @ SLOPE,
    }
    check = f"reward after {greedy.calls:g} calls"
    for name, score in scores.items():
        wrap = control if name == "best-of-N" else lambda check: check
        results.append(wrap(mean_above(f"{name}: {check}", score.reshape(SEEDS, -1).mean(1), 1.42)))
    return results
