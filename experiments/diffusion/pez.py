"""PEZ: planted words are found, where soft prompts end between words."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.shared.check import Check, above, control
from jaxgen.method import minimise
from jaxgen.steer.pez import nearest, pez

PAPER = (
    "Hard Prompts Made Easy: Gradient-Based Discrete Optimization for Prompt Tuning and Discovery"
)
ENTRY = "jaxgen.steer.pez.pez"
WORDS, WIDTH, FEATURES, LENGTH, PROBLEMS, STEPS = 30, 16, 24, 3, 200, 500
"""More numbers in a prompt (48) than in what is seen of it: soft prompts are not unique."""


def found(key: jax.Array) -> dict[str, jax.Array]:
    """Whether each way finds all the words of one problem: a linear encoder, 1 - cosine."""
    vocabulary = jax.random.normal(jax.random.key(0), (WORDS, WIDTH))
    word_key, map_key, first_key = jax.random.split(key, 3)
    words = jax.random.randint(word_key, (LENGTH,), 0, WORDS)
    maps = jax.random.normal(map_key, (LENGTH, WIDTH, FEATURES)) / WIDTH**0.5

    def encoded(embeddings: jax.Array) -> jax.Array:
        features = jnp.einsum("nd,ndf->f", embeddings, maps)
        return features / jnp.linalg.norm(features)

    wanted, rule = encoded(vocabulary[words]), optax.adam(0.1)

    def loss(embeddings: jax.Array) -> jax.Array:
        return 1 - encoded(embeddings) @ wanted

    def soft(prompt: jax.Array, number: jax.Array) -> jax.Array:
        """The gradient at the prompt itself, the value at the nearest words."""
        there = loss(vocabulary[nearest(prompt, vocabulary)])
        return loss(prompt) + jax.lax.stop_gradient(there - loss(prompt))

    first = vocabulary[jax.random.randint(first_key, (LENGTH,), 0, WORDS)]
    hard, _ = pez(loss, vocabulary, first, rule, steps=STEPS)
    every = jnp.arange(STEPS)
    last, _ = minimise(lambda prompt, _: loss(prompt), rule, first, every)
    best, _ = minimise(soft, rule, first, every, best=True)
    prompts = {"the last soft prompt's": last, "the best of soft prompts'": best}
    ways = {name: nearest(prompt, vocabulary) for name, prompt in prompts.items()}
    return {name: (w == words).all() for name, w in {"hard": hard, **ways}.items()}


def checks() -> list[Check]:
    """The share of problems whose three words are all found (standard error .01 to .035)."""
    run: Any = jax.jit(jax.vmap(found))
    shares = {k: v.mean() for k, v in run(jax.random.split(jax.random.key(1), PROBLEMS)).items()}
    results = [above("share of prompts found", shares.pop("hard"), 0.9)]
    for name, share in shares.items():
        results.append(control(above(f"share of prompts found, {name} nearest words", share, 0.9)))
    return results
