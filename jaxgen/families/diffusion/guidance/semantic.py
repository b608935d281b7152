"""Semantic diffusion guidance (Liu et al. 2021): by an image's similarity to a text or an image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.guidance.classifier import classifier

Encoder = Callable[[jax.Array, jax.Array], jax.Array]
Similarity = Callable[[jax.Array, jax.Array], jax.Array]


def sdg(guided: Denoiser, path: Path, similarity: Similarity, *, weight: float = 1.0) -> Denoiser:
    """eps - weight sigma grad F(x_t, t), and x0 to match (theirs shifts the mean).

    similarity(x[B, ...], t) -> [B] is F: it sees noisy images. Sections add up: one sdg on another
    follows the weighted sum. weight = 0 is `guided` itself.
    """
    return classifier(guided, path, similarity, weight=weight)


def language(encode: Encoder, embedding: jax.Array) -> Similarity:
    """The cosine of an image's code and a text's; encode(x, t) -> [B, E]."""

    def similarity(x: jax.Array, t: jax.Array) -> jax.Array:
        return _cosine(encode(x, t), jnp.broadcast_to(embedding, (x.shape[0], *embedding.shape)))

    return similarity


def content(encode: Encoder, reference: jax.Array, path: Path, key: jax.Array) -> Similarity:
    """The cosine of an image's code and that of a reference as noisy as it.

    reference [...], one image; its noise is N(0, I) from the key, the same at all times.
    """
    noise = jax.random.normal(key, reference.shape)

    def similarity(x: jax.Array, t: jax.Array) -> jax.Array:
        return _cosine(encode(x, t), encode(_noised(reference, noise, x, t, path), t))

    return similarity


def style(features: Encoder, reference: jax.Array, path: Path, key: jax.Array) -> Similarity:
    """Minus the squared distance of Gram matrices; features(x, t) -> [B, ..., E]."""
    noise = jax.random.normal(key, reference.shape)

    def similarity(x: jax.Array, t: jax.Array) -> jax.Array:
        gap = _gram(features(x, t)) - _gram(features(_noised(reference, noise, x, t, path), t))
        return -(gap**2).sum((1, 2))

    return similarity


def _noised(
    reference: jax.Array, noise: jax.Array, x: jax.Array, t: jax.Array, path: Path
) -> jax.Array:
    t = jnp.broadcast_to(t, x.shape[:1])
    alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
    return alpha * reference + sigma * noise


def _gram(f: jax.Array) -> jax.Array:
    """E[f f^T] over the positions of features [B, ..., E], [B, E, E]."""
    flat = f.reshape(f.shape[0], -1, f.shape[-1])
    return jnp.einsum("bni,bnj->bij", flat, flat) / flat.shape[1]


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    lengths = jnp.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return (a * b).sum(-1) / jnp.maximum(lengths, TINY)
