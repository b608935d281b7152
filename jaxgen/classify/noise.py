"""Noisy pictures: what a classifier that never saw noise is asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from jaxgen.errors import invalid
from jaxgen.method import Spec, normal


def add_noise(spec: Spec, images: jax.Array, keys: jax.Array, std: float) -> jax.Array:
    """Images [B, *shape] in [-1, 1] plus std times Gaussian noise, as pictures again.

    The result is rounded to the nearest of the data's levels, which also clips it to [-1, 1], as a
    camera would store it: so families of tokens, of densities and classifiers all see the same
    pixels. keys [B]: the noise of image i is keys[i]'s at every std. std 0: the images as they are.
    """
    if std == 0:
        return images
    return spec.from_tokens(spec.to_tokens(images + std * normal(keys, spec.shape)))


def noise_levels(spec: Spec, given: Sequence[float]) -> tuple[float, ...]:
    """The standard deviations asked for. Raises UsageError for what the data do not allow."""
    levels = tuple(float(std) for std in given)
    if levels and (spec.tokens or spec.levels is None):
        kind = "tokens" if spec.tokens else "real numbers"
        raise invalid("--noise", levels, f"nothing: this model's examples are {kind}, not pixels")
    wrong = [std for std in levels if not (math.isfinite(std) and std >= 0)]
    if wrong:
        raise invalid("--noise", wrong[0], "standard deviations >= 0, for images in [-1, 1]")
    if len(set(levels)) < len(levels):
        raise invalid("--noise", levels, "each standard deviation once")
    return levels
