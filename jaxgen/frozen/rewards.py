"""Rewards for `sample.steer`: functions of what a sampler makes and of its labels.

A reward is a function that takes a section's keywords and returns fn(x [B, *shape], labels [B]) ->
[B], traced by JAX; more is better. Your own is a section with its dotted path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.metrics.extractors import classifier as classifiers

Reward = Callable[[jax.Array, jax.Array], jax.Array]


def classifier(*, file: str) -> Reward:
    """ln p(label | image) by the classifier that `jaxgen evaluate` leaves in a run's workdir.

    file: e.g. "runs/digits/classifier.safetensors". For images [B, H, W, C] in [-1, 1] of the size
    that it was trained on; 0 where the label is "no label".
    """
    apply, params = classifiers.opened(file, "reward.file")

    def reward(x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, x)[1]
        classes = logits.shape[1]
        log = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log, jnp.minimum(labels, classes - 1)[:, None], axis=1)[:, 0]
        return jnp.where(labels < classes, chosen, 0.0)

    return reward


def likeness(*, file: str) -> Reward:
    """Minus the mean squared distance to one example in a .npy file, [*shape], whatever its label.

    Floats on the scale of what the sampler makes: images in [-1, 1].
    """
    path = Path(file)
    if not path.is_file():
        raise invalid("reward.file", file, "a .npy file")
    goal = np.load(path, allow_pickle=False).astype(np.float32)

    def reward(x: jax.Array, labels: jax.Array) -> jax.Array:
        if x.shape[1:] != goal.shape:
            raise invalid("reward.file", goal.shape, f"an example of shape {x.shape[1:]}")
        return -((x - goal) ** 2).reshape(len(x), -1).mean(1)

    return reward


def harmonic(*, first: Any, second: Any, share: float = 0.5, exponential: bool = True) -> Reward:
    """1 / (share / a + (1 - share) / b) of two rewards: low where either is (Miao et al. 2024).

    first, second: sections of this room, or functions; a and b are the exponentials of what they
    say (a probability, of `classifier`), or with exponential=False what they say, which has to be
    above 0 then: else this is 0.
    """
    if not 0 < share < 1:
        raise invalid("reward.share", share, "between 0 and 1")
    each = [
        part(section, ROOMS["reward"], f"reward.{name}")
        for name, section in (("first", first), ("second", second))
    ]

    def reward(x: jax.Array, labels: jax.Array) -> jax.Array:
        a, b = (jnp.exp(fn(x, labels)) if exponential else fn(x, labels) for fn in each)
        good = (a > 0) & (b > 0)
        a, b = (jnp.where(good, score, 1.0) for score in (a, b))
        return jnp.where(good, 1 / (share / a + (1 - share) / b), 0.0)

    return reward
