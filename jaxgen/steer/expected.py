"""Training what steering trains: a small network, on draws of a frozen generator and no data.

`minimise_expected(prompt.loss, optimizer, prompt.init(key), key, steps=, batch=)`, of a `PromptGen`
or a `TR0N`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import minimise

PyTree = Any


def minimise_expected(
    loss: Callable[[PyTree, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    params: PyTree,
    key: jax.Array,
    *,
    steps: int,
    batch: int,
) -> tuple[PyTree, jax.Array]:
    """(params, losses [steps]) after `steps` updates by loss(params, keys [batch]) -> scalar.

    Fresh keys in every step; one scan, so it can be jitted, and vmapped over params and key.
    """
    if min(steps, batch) < 1:
        raise invalid("minimise_expected", (steps, batch), "steps >= 1 and batch >= 1")

    def at(params: PyTree, number: jax.Array) -> jax.Array:
        return loss(params, jax.random.split(jax.random.fold_in(key, number), batch))

    return minimise(at, optimizer, params, jnp.arange(steps))
