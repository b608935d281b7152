"""The forget set that is hardest to forget, which tells more of unlearning than a random one.

Fan et al., "Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning"
(2024). Above, weights w of n examples (or classes, or prompts), relaxed from {0, 1} to the capped
simplex, are chosen so that the unlearned model still fits what was forgotten; below, the model is
unlearned given w, and the gradient goes through its steps. With signs of gradients in the place of
gradients (`optax.sign_sgd`) none does, as in the paper: only where the model went counts.
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
BISECTIONS = 60
"""Halvings of the interval in which the projection's shift lies: float32 has no more to give."""


def unrolled(
    objective: Callable[[PyTree, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    params: PyTree,
    steps: int,
) -> Callable[[jax.Array], PyTree]:
    """unlearn(w [n]) -> params, after so many steps on objective(params, w) -> scalar.

    E.g. the loss of what is kept, sum_i (1 - w_i) loss_i; or that and the loss of what is forgotten
    with other labels. Differentiable in w.
    """

    def unlearn(w: jax.Array) -> PyTree:
        loss = lambda params, _: objective(params, w)
        return minimise(loss, optimizer, params, jnp.arange(steps))[0]

    return unlearn


def worst_case(
    losses: Callable[[PyTree], jax.Array],
    unlearn: Callable[[jax.Array], PyTree],
    count: int,
    size: int,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    gamma: float = 0.0,
) -> jax.Array:
    """Weights [count] in [0, 1] with sum `size` whose largest are the worst-case forget set.

    They minimise sum_i w_i losses(unlearn(w))_i + gamma |w|^2, from all equal, by projected steps
    of the optimizer. losses(params) -> [count]. Raises UsageError unless 0 < size < count.
    """
    if not 0 < size < count:
        raise invalid("unlearn.worst_case.size", size, f"1 to {count - 1}")

    def upper(w: jax.Array, _: Any) -> jax.Array:
        return w @ losses(unlearn(w)) + gamma * w @ w

    start = jnp.full(count, size / count)
    return minimise(
        upper, optimizer, start, jnp.arange(steps), project=lambda w: capped_simplex(w, size)
    )[0]


def capped_simplex(v: jax.Array, total: float) -> jax.Array:
    """The nearest point to v [n] with values in [0, 1] and this sum: clip(v - mu, 0, 1)."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        mu = (low + high) / 2
        above = jnp.clip(v - mu, 0, 1).sum() > total
        return jnp.where(above, mu, low), jnp.where(above, high, mu)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (v.min() - 1, v.max()))
    return jnp.clip(v - (low + high) / 2, 0, 1)
