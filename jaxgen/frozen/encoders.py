"""Encoders: frozen functions from examples to vectors, for `method.describe`.

An encoder is a function that takes a section's keywords and returns fn(x [B, *shape]) -> [B, D],
traced by JAX. One's own is a section with its dotted path.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxgen.metrics.extractors import classifier as classifiers

Encoder = Callable[[jax.Array], jax.Array]


def flat() -> Encoder:
    """The example itself, flattened."""
    return lambda x: x.reshape(x.shape[0], -1)


def classifier(*, file: str) -> Encoder:
    """The last hidden layer [B, 64] of the classifier that `jaxgen evaluate` leaves in a workdir.

    file: e.g. "runs/digits/classifier.safetensors". For images [B, H, W, C] in [-1, 1] of the size
    that it was trained on.
    """
    apply = classifiers.opened(file, "encoder.file")
    return lambda x: apply(x)[0]
