"""Concepts: the means of three unlabelled Gaussians, found through a frozen exact denoiser."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.causal import quick_jit
from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from experiments.shared.toys import PATH, SEEDS, of_mean
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.guidance.concepts import Concepts, compose, discovery_loss, fresh
from jaxgen.method import minimise
from jaxgen.testing import gaussian_denoiser

PAPER = "Unsupervised Compositional Concepts Discovery with Text-to-Image Generative Models"
ENTRY = "jaxgen.families.diffusion.guidance.concepts.discovery_loss"

WIDTH, STEPS, STARTS, SHARP, FAR = 6, 150, 8, 3.0, 1.5
MEANS = np.zeros((3, WIDTH))
MEANS[0, 0], MEANS[1, 1], MEANS[2, 2:4] = 7.0, 6.0, (-5.0, 4.0)
COUNTS = (20, 28, 16)
CLASSES = np.repeat(np.arange(3), COUNTS)
# The frozen model: unit Gaussians whose mean is their condition vector; without one, at 0.
COND, UNCOND = of_mean(np.zeros(WIDTH), 1.0), gaussian_denoiser(PATH, 0.0, 1.0)


def images(key: jax.Array) -> jax.Array:
    """Unlabelled samples of the three classes, [64, WIDTH]."""
    noise = jax.random.normal(key, (len(CLASSES), WIDTH))
    return jnp.asarray(MEANS, jnp.float32)[CLASSES] + noise


def discover(key: jax.Array, concepts: int, sharpness: float = SHARP) -> tuple[Concepts, jax.Array]:
    """(what is learned, the images): the best of STARTS by its own loss."""
    x0, index = images(key), jnp.arange(len(CLASSES))

    def attempt(attempt_key: jax.Array) -> tuple[Concepts, jax.Array]:
        learned = learn(attempt_key, x0, concepts, sharpness)
        keys = jax.random.split(key, len(CLASSES))
        return learned, discovery_loss(learned, index, x0, keys, COND, UNCOND, sharpness=sharpness)

    learned, losses = jax.vmap(attempt)(jax.random.split(jax.random.fold_in(key, 1), STARTS))
    return jax.tree.map(lambda a: a[losses.argmin()], learned), x0


def learn(key: jax.Array, x0: jax.Array, concepts: int, sharpness: float) -> Concepts:
    """STEPS of Adam on all images, from random vectors."""
    index = jnp.arange(len(CLASSES))
    start = fresh(key, len(CLASSES), concepts, WIDTH, 1.0)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))

    def loss(params: Concepts, number: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, number), len(CLASSES))
        return discovery_loss(params, index, x0, keys, COND, UNCOND, sharpness=sharpness)

    return minimise(loss, optimizer, start, jnp.arange(STEPS))[0]


def matched(learned: Concepts, seed: int) -> tuple[float, float, tuple[int, ...]]:
    """(the largest distance of a vector from its mean, accuracy of argmax, the matching)."""
    vectors, chosen = np.asarray(learned.vectors[seed]), np.asarray(learned.logits[seed]).argmax(-1)
    far = np.linalg.norm(vectors[:, None] - MEANS, axis=-1)
    best = min(itertools.permutations(range(3)), key=lambda p: far[range(3), p].sum())
    return float(far[range(3), best].max()), float((np.array(best)[chosen] == CLASSES).mean()), best


def checks() -> list[Check]:
    """Means and classes up to order, one vector alone, and a mixture of two concepts."""
    outcomes = []
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    three, x0 = quick_jit(jax.vmap(lambda k: discover(k, 3)))(keys)
    single, _ = quick_jit(jax.vmap(lambda k: discover(k, 1)))(keys)
    results = [matched(three, seed) for seed in range(SEEDS)]
    check = "largest distance of a concept from its class' mean"
    outcomes.append(mean_below(check, [far for far, _, _ in results], FAR))
    alone = np.linalg.norm(np.asarray(single.vectors) - MEANS, axis=-1).max(1)
    outcomes.append(control(mean_below(f"{check}, a single concept", alone, FAR)))
    outcomes.append(mean_above("accuracy of the largest weight", [a for _, a, _ in results], 0.95))
    start = jax.vmap(lambda k: fresh(k, len(CLASSES), 3, WIDTH, 1.0))(keys)
    guess = [matched(start, seed)[1] for seed in range(SEEDS)]
    outcomes.append(control(mean_above("accuracy before training", guess, 0.95)))
    # The images' own mean is the least squares' answer for one vector.
    off = np.linalg.norm(np.asarray(single.vectors[:, 0] - x0.mean(1)), axis=-1)
    outcomes.append(mean_below("a single concept's distance from the grand mean", off, 0.5))
    return [*outcomes, *mixtures(three, results)]


def mixtures(three: Concepts, results: list[Any]) -> list[Check]:
    """Samples of two concepts composed, which no image shows: they lie around their midpoint."""
    grid, count = grids.uniform(24, PATH), 400

    @quick_jit
    def drawn(vectors: jax.Array, weights: jax.Array, keys: jax.Array) -> jax.Array:
        denoiser = compose(COND, UNCOND, vectors, weights)
        x = prior(PATH, keys, (WIDTH,))
        return integrate(solvers.euler(PATH), denoiser, x, grid, keys)

    away: dict[str, list[float]] = {"both": [], "one": []}
    for seed, (_, _, best) in enumerate(results):
        keys = jax.random.split(jax.random.key(seed), count)
        middle = (MEANS[0] + MEANS[1]) / 2
        toward = (MEANS[0] - MEANS[1]) / np.linalg.norm(MEANS[0] - MEANS[1])
        for name, share in (("both", (0.5, 0.5, 0.0)), ("one", (1.0, 0.0, 0.0))):
            weights = jnp.asarray([share[b] for b in best])
            out = np.asarray(drawn(three.vectors[seed], weights, keys))
            away[name].append(float((out.mean(0) - middle) @ toward))
    check = "samples of two concepts: mean place between their classes"
    return [
        mean_near(check, away["both"], 0.0, 0.5),
        control(mean_near(f"{check}, of one alone", away["one"], 0.0, 0.5)),
    ]
