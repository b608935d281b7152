"""Differentiable augmentation of what the discriminator sees, real and fake alike.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training": the generator's
gradient passes through it, so that it learns the images themselves and not their augmentations
(Karras et al. 2020 on when that holds: each must be undone in distribution).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def differentiable(
    policy: tuple[str, ...] = ("brightness", "translation", "cutout"),
    *,
    shift: float = 0.125,
    hole: float = 0.5,
    brightness: float = 0.5,
    fill: float = 0.0,
) -> Augment:
    """fn(x[B, H, W, C], keys[B]) -> x: the policy's steps in order, drawn for each image.

    policy: of `POLICIES`. shift: translations up to this share of the side, whole pixels. hole: the
    side of the square that is cut out, as a share. brightness: the width of the added constant.
    fill: what comes in from outside and into the hole.
    """
    for name in policy:
        if name not in POLICIES:
            raise unknown("method.augmentation.policy", name, POLICIES)
    if not policy:
        raise invalid("method.augmentation.policy", policy, ", ".join(POLICIES))
    if not (0 <= shift <= 1 and 0 < hole < 1 and brightness >= 0):
        raise invalid(
            "method.augmentation",
            dict(shift=shift, hole=hole, brightness=brightness),
            "0 <= shift <= 1, 0 < hole < 1, brightness >= 0",
        )

    def augment(x: jax.Array, key: jax.Array) -> jax.Array:
        for name, k in zip(policy, jax.random.split(key, len(policy)), strict=True):
            if name == "flip":
                x = jnp.where(jax.random.bernoulli(k), x[:, ::-1], x)
            elif name == "brightness":
                x = x + brightness * (jax.random.uniform(k) - 0.5)
            elif name == "translation":
                x = _translate(x, k, shift, fill)
            else:
                x = _cut_out(x, k, hole, fill)
        return x

    return jax.vmap(augment)


POLICIES = ("brightness", "cutout", "flip", "translation")


def _translate(x: jax.Array, key: jax.Array, share: float, fill: float) -> jax.Array:
    height, width, channels = x.shape
    most = jnp.array([int(height * share + 0.5), int(width * share + 0.5)])
    rows, columns = int(height * share + 0.5), int(width * share + 0.5)
    padded = jnp.pad(x, ((rows, rows), (columns, columns), (0, 0)), constant_values=fill)
    start = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), (height, width, channels))


def _cut_out(x: jax.Array, key: jax.Array, share: float, fill: float) -> jax.Array:
    sizes = [max(int(n * share + 0.5), 1) for n in x.shape[:2]]
    inside = []
    for k, n, size in zip(jax.random.split(key), x.shape[:2], sizes, strict=True):
        # The hole may hang over an edge, by half its side at most.
        first = jax.random.randint(k, (), 0, n + 1 - size % 2) - size // 2
        place = jnp.arange(n)
        inside.append((place >= first) & (place < first + size))
    hole = inside[0][:, None, None] & inside[1][None, :, None]
    return jnp.where(hole, fill, x)
