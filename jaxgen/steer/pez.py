"""PEZ: prompts of words, found by gradients (Wen et al., "Hard Prompts Made Easy", 2023)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import minimise


def pez(
    loss: Callable[[jax.Array], jax.Array],
    vocabulary: jax.Array,
    first: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """(words int32 [N], losses [steps]) of N words whose embeddings have the least loss found.

    loss(embeddings [N, D]) -> scalar, of whatever is frozen behind it: an encoder, a generator's
    own loss. vocabulary: the words' embeddings [V, D]. first: a prompt [N, D] to begin with. Each
    step takes the gradient at the nearest words and applies it to the prompt between them (their
    algorithm 1), so that it moves on where a word alone would stay. It can be jitted and vmapped.
    Raises UsageError: embeddings of another size, fewer than one step.
    """
    if first.ndim != 2 or vocabulary.ndim != 2 or first.shape[1] != vocabulary.shape[1]:
        given = (first.shape, vocabulary.shape)
        raise invalid("pez", given, "a prompt [N, D] and a vocabulary [V, D]")
    if steps < 1:
        raise invalid("pez.steps", steps, "steps >= 1")

    def at_words(prompt: jax.Array, number: jax.Array) -> jax.Array:
        words = vocabulary[nearest(prompt, vocabulary)]
        return loss(prompt + jax.lax.stop_gradient(words - prompt))

    prompt, losses = minimise(at_words, optimizer, first, jnp.arange(steps), best=True)
    return nearest(prompt, vocabulary), losses


def nearest(prompt: jax.Array, vocabulary: jax.Array) -> jax.Array:
    """The nearest of vocabulary [V, D] to each of a prompt [N, D], int32 [N]."""
    square = (vocabulary**2).sum(1) - 2 * prompt @ vocabulary.T
    return square.argmin(1).astype(jnp.int32)
