"""Latents: the distribution that the generator turns into images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxgen.errors import invalid
from jaxgen.method import normal as standard_normal


@dataclasses.dataclass(frozen=True)
class Latent:
    """draw(keys[B]) -> float32 [B, size]; truncated(bound) -> such a draw, or None."""

    size: int
    draw: Callable[[jax.Array], jax.Array]
    truncated: Callable[[float], Callable[[jax.Array], jax.Array]] | None = None


def normal(size: int = 128) -> Latent:
    """Standard normal; truncated by drawing values beyond +-bound again (Brock et al. 2019)."""
    _check(size)

    def truncated(bound: float) -> Callable[[jax.Array], jax.Array]:
        return lambda keys: jax.vmap(
            lambda key: jax.random.truncated_normal(key, -bound, bound, (size,))
        )(keys)

    return Latent(size, lambda keys: standard_normal(keys, (size,)), truncated)


def uniform(size: int = 100) -> Latent:
    """Uniform on [-1, 1]."""
    _check(size)

    def draw(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0))(keys)

    return Latent(size, draw)


def _check(size: int) -> None:
    if size < 1:
        raise invalid("method.latent.size", size, "size >= 1")
