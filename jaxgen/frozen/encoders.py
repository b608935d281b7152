"""Encoders by name: frozen functions from examples to vectors, for descriptions and terms.

An encoder is a function that takes a section's keywords and returns a `jaxgen.method.Encoder`, or
fn(x [B, *shape]) -> [B, D] traced by JAX. Your own is a section with its dotted path.
"""

from __future__ import annotations

import jax

from jaxgen.errors import invalid
from jaxgen.method import Encoder
from jaxgen.metrics.extractors import classifier as classifiers


def flat() -> Encoder:
    """The example itself, flattened."""
    return Encoder(lambda params, x: x.reshape(x.shape[0], -1))


def pooled(*, side: int) -> Encoder:
    """Means over side x side equal cells of images [B, H, W, C], flattened."""

    def means(params: None, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        if side < 1 or height % side or width % side:
            raise invalid("encoder.side", side, f"a divisor of {height} and {width}")
        cells = x.reshape(batch, side, height // side, side, width // side, channels)
        return cells.mean((2, 4)).reshape(batch, -1)

    return Encoder(means)


def classifier(*, file: str) -> Encoder:
    """The last hidden layer [B, 64] of the classifier that `jaxgen evaluate` leaves in a workdir.

    file: e.g. "runs/digits/classifier.safetensors". For images [B, H, W, C] in [-1, 1] of the size
    that it was trained on.
    """
    apply, params = classifiers.opened(file, "encoder.file")
    return Encoder(lambda params, x: apply(params, x)[0], params)
