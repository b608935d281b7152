"""Domain expansion: new domains along directions of the latents that a generator does not use.

Nitzan et al., "Domain Expansion of Image Generators" (2023). Directions to which the first layer is
nearly blind are dormant: latents moved along them make the same samples. Each new domain is given
one, and the generator is trained so that latents moved along it make that domain's samples, while
latents without a part along any make what they made before (`expansion`). What was learnt is then
where it was, domains shade into one another with the shift, and several shifts add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

PyTree = Any
Generate = Callable[[PyTree, jax.Array], jax.Array]
"""(parameters, latents [B, D]) -> samples [B, ...]."""


def dormant(kernel: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` directions [count, D] to which a layer is most nearly blind, and how much each is
    felt [count]: the last right-singular vectors of x -> x W and their singular values.

    kernel: W [D, out], of the latents alone (labels that enter beside them have rows of their own).
    Raises UsageError unless 1 <= count < D.
    """
    size = kernel.shape[0]
    if not 1 <= count < size:
        raise invalid("expansion.count", count, f"1 to {size - 1}, of {size} latents")
    # Of the D x D matrix, whose singular vectors are all there where the layer is narrow.
    values, vectors = jnp.linalg.eigh(kernel @ kernel.T)
    return vectors[:, :count].T, jnp.sqrt(jnp.maximum(values[:count], 0.0))


def placed(z: jax.Array, directions: jax.Array, shifts: jax.Array) -> jax.Array:
    """Latents [B, D] with `shifts` [N] or [B, N] along the directions [N, D], in place of their own
    parts there. Shifts of 0 are the base, where everything is as it was."""
    along = jnp.broadcast_to(shifts, (len(z), len(directions))) - z @ directions.T
    return z + along @ directions


def expansion(
    generate: Generate,
    old: PyTree,
    directions: jax.Array,
    losses: Sequence[Callable[[jax.Array], jax.Array]],
    *,
    shift: float,
    replay: float = 1.0,
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """loss(parameters, z [B, D]): each domain's of its samples, and what the base has changed by.

    old: the parameters as they were. losses: of samples -> a number, one for each direction. shift:
    how far along its direction a domain lies. replay: weight of the mean square between the samples
    of the base and the same of `old`. Raises UsageError unless there is a direction for each loss.
    """
    if len(losses) != len(directions) or not losses:
        raise invalid(
            "expansion.losses", len(losses), f"one for each of {len(directions)} directions"
        )
    if shift == 0 or replay < 0:
        raise invalid("expansion", (shift, replay), "a shift that is not 0, replay >= 0")
    corners = shift * jnp.eye(len(losses))

    def loss(params: PyTree, z: jax.Array) -> jax.Array:
        base = placed(z, directions, jnp.zeros(len(losses)))
        kept = generate(params, base) - jax.lax.stop_gradient(generate(old, base))
        value = replay * (kept**2).mean()
        for corner, own in zip(corners, losses, strict=True):
            value += own(generate(params, placed(z, directions, corner)))
        return value

    return loss
