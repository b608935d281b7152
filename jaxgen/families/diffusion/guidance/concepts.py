"""Concepts found without labels, and composed (Liu et al. 2023).

A frozen model that is conditioned on a vector is asked for a few vectors, shared by a collection of
images, and for each image's weights of them. Concepts found so are guidance like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.method import fold, normal
from jaxgen.method.streams import PAIR_NOISE, PAIR_TIME


class Concepts(NamedTuple):
    """What is learned of N images: K condition vectors [K, E], and logits [N, K] of the weights."""

    vectors: jax.Array
    logits: jax.Array

    def weights(self, index: jax.Array, sharpness: float = 1.0) -> jax.Array:
        """The weights of images `index` [B]: [B, K], each row of sum 1; its argmax is a class.

        sharpness: the softmax's inverse temperature. High, an image soon belongs to one concept,
        and a concept is where its images are; low, it may lie outside of all that it mixes to.
        """
        return jax.nn.softmax(sharpness * self.logits[index], axis=-1)


def fresh(key: jax.Array, images: int, concepts: int, width: int, scale: float = 0.02) -> Concepts:
    """Random vectors of deviation `scale`, and equal weights."""
    if concepts < 1:
        raise invalid("concepts.concepts", concepts, "at least 1")
    vectors = scale * jax.random.normal(key, (concepts, width))
    return Concepts(vectors, jnp.zeros((images, concepts)))


def compose(cond: Denoiser, uncond: Denoiser, vectors: jax.Array, amounts: jax.Array) -> Denoiser:
    """uncond + sum_k amounts[:, k] (cond of vectors[k] - uncond), on x0 and eps alike.

    cond: a denoiser with a condition vector (`recondition`), whose own is not used. vectors [K, E];
    amounts [B, K], their weights, or [K] for all. K + 1 network calls.
    """
    if cond.recondition is None:
        allowed = "a network's, or one that has `recondition`"
        raise invalid("guidance.compose", "a denoiser without a condition vector", allowed)
    change, count = cond.recondition, vectors.shape[0]
    if amounts.shape[-1] != count:
        raise invalid("guidance.amounts", amounts.shape, f"one for each of {count} vectors")

    def of(vector: jax.Array) -> Denoiser:
        return change(lambda y: jnp.broadcast_to(vector, y.shape).astype(y.dtype))

    conditioned = [of(vectors[k]) for k in range(count)]

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        q, first = uncond(keys, x, t, memory[0])
        x0, eps, after = q.x0, q.eps, [first]
        share = jnp.broadcast_to(amounts, (x.shape[0], count))
        for k, denoiser in enumerate(conditioned):
            p, concept_memory = denoiser(keys, x, t, memory[k + 1])
            w = expand(share[:, k], x)
            x0, eps = x0 + w * (p.x0 - q.x0), eps + w * (p.eps - q.eps)
            after.append(concept_memory)
        return Prediction(x0, eps, q.variance), tuple(after)

    every = (uncond, *conditioned)
    return Denoiser(
        call,
        init=lambda x: tuple(each.init(x) for each in every),
        calls=lambda t: sum(each.calls(t) for each in every),
        path=uncond.path,
    )


def discovery_loss(
    learned: Concepts,
    index: jax.Array,
    x0: jax.Array,
    keys: jax.Array,
    cond: Denoiser,
    uncond: Denoiser,
    *,
    sharpness: float = 1.0,
    path: Path | None = None,
) -> jax.Array:
    """The mean squared error of the composed eps at uniform times, to be minimised over `learned`.

    x0 [B, ...]: the images of number index [B]; keys [B]. The denoisers stay frozen. It has local
    minima: of several starts, keep the best. sharpness: see `Concepts.weights`.
    """
    path = path_of(uncond, path)
    t = jax.vmap(jax.random.uniform)(fold(keys, PAIR_TIME))
    eps = normal(fold(keys, PAIR_NOISE), x0.shape[1:])
    denoiser = compose(cond, uncond, learned.vectors, learned.weights(index, sharpness))
    x = path.mix(x0, eps, t)
    p, _ = denoiser(keys, x, t, denoiser.init(x))
    return ((p.eps - eps) ** 2).mean()
