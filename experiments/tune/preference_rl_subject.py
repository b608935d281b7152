"""Reward preference optimization: the law that preferences lead to, and where to stop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, above, below, control
from experiments.shared.tabular import (
    CLASSES,
    VALUES,
    distance,
    history,
    law,
    reward,
    tilted,
    tuned,
)
from jaxgen.frozen.rewards import harmonic
from jaxgen.tune.preference import dpo

PAPER = "Subject-driven Text-to-Image Generation via Preference-based Reinforcement Learning"
ENTRY = "jaxgen.tune.preference.dpo"
BETA = 0.5
SUBJECT = np.array([1.0, 0.8, *np.linspace(0.1, 0.3, VALUES - 2)], np.float32)
TEXT = np.array([0.15, 0.8, *np.linspace(1.0, 0.8, VALUES - 2)], np.float32)
"""How like the references each value is, and how well it fits its label. All references are 0."""


def score(which: np.ndarray, x: jax.Array, labels: jax.Array) -> jax.Array:
    """A score of values [B, 1], as a reward."""
    return jnp.asarray(which)[x[:, 0]]


def mean_of_two(pairs: Any, share: float = 0.5) -> np.ndarray:
    """The library's harmonic mean, of scores [N, 2]."""
    first, second = ((lambda x, labels, n=n: x[:, n]) for n in (0, 1))
    mean = harmonic(first=first, second=second, share=share, exponential=False)
    return np.asarray(mean(jnp.asarray(pairs, jnp.float32), jnp.zeros(len(pairs), jnp.int32)))


def validation(scale: float, steps: int = 300) -> np.ndarray:
    """The harmonic mean of the two mean scores after each step, the classes' mean.

    Preferences are by `scale` times the harmonic mean of the values' own scores.
    """
    first, second = (functools.partial(score, which) for which in (SUBJECT, TEXT))
    mean = harmonic(first=first, second=second, exponential=False)

    def rewarded(x: jax.Array, labels: jax.Array) -> jax.Array:
        return scale * mean(x, labels)

    references = np.tile(np.eye(VALUES)[0] + 1e-9, (CLASSES, 1))
    wrap = functools.partial(dpo, reward=rewarded, data=True, beta=0.1, similarity=0.1)
    p = law(history(wrap, steps=steps, data=references))
    pairs = np.stack([p @ SUBJECT, p @ TEXT], axis=-1)
    return mean_of_two(pairs.reshape(-1, 2)).reshape(steps, CLASSES).mean(1)


def checks() -> list[Check]:
    """The mean's identities; the tilted law; tuning that is best before its end."""
    a, b = np.random.default_rng(0).uniform(0.1, 1, (2, 100))
    off = np.abs(mean_of_two(np.stack([a, b], 1)) - 2 * a * b / (a + b)).max()
    results = [below("from 2 a b / (a + b) at a share of a half", off, 1e-6)]
    least = mean_of_two([[1.0, 1e-6], [1e-6, 1.0], [0.0, 1.0]]).max()
    results.append(below("where one score is next to nothing", least, 1e-5))
    check = "total variation from the tilted law"
    for rewarded, name in ((reward, ""), (lambda x, labels: jnp.zeros(len(x)), ", no preference")):
        found = tuned(functools.partial(dpo, reward=rewarded, beta=BETA), steps=800)
        made = below(f"{check}{name}", distance(found, tilted(1 / BETA)), 0.02)
        results.append(control(made) if name else made)
    found, without = validation(10.0), validation(0.0)
    for stop, name in ((int(found.argmax()), "the best"), (-1, "the last")):
        gain = found[stop] - found[0]
        made = above(f"reward at {name} step, less that at the first", gain, 0.05)
        results.append(control(made) if stop < 0 else made)
    last = "reward at the last step, less that without preferences"
    results.append(above(last, found[-1] - without[-1], 0.05))
    return results
