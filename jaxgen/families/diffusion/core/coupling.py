"""Which noise goes with which example of a batch: as it comes, or at the least squared distance.

Minibatch optimal transport (Pooladian et al. 2023; Tong et al. 2023). The assignment is exact, by
shortest augmenting paths (Jonker & Volgenant 1987), and a JAX program: no call back to the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Coupling:
    """pair(x0 [B, ...], eps [B, ...]) -> the noises in the order in which they go with x0.

    whole_batch: whether the batch's examples are looked at together.
    """

    pair: Callable[[jax.Array, jax.Array], jax.Array]
    whole_batch: bool = False


INDEPENDENT = Coupling(lambda x0, eps: eps)


def independent() -> Coupling:
    """As they come."""
    return INDEPENDENT


def optimal() -> Coupling:
    """At the least squared distance (`nearest_pairs`); the pairing does not see the labels."""
    return Coupling(nearest_pairs, whole_batch=True)


def assignment(cost: jax.Array) -> jax.Array:
    """The permutation p [B] that minimises sum_i cost[i, p_i], for cost [B, B] finite.

    O(B^3) work in at most B^2 sequential steps of size B. Prices u of rows and v of columns keep
    every reduced cost cost - u - v >= 0 and those of the assigned pairs 0, up to rounding.
    """
    size = cost.shape[0]

    def add(i: jax.Array, state: tuple) -> tuple:
        """Row i finds a column along the cheapest alternating path."""
        u, v, row_of = state

        def search(s: tuple) -> tuple:
            shortest, before, done, row, column, reach = s
            through = reach + cost[row] - u[row] - v
            closer = ~done & (through < shortest)
            shortest = jnp.where(closer, through, shortest)
            before = jnp.where(closer, column, before)
            nearest = jnp.argmin(jnp.where(done, jnp.inf, shortest)).astype(jnp.int32)
            done = done.at[nearest].set(True)
            return shortest, before, done, row_of[nearest], nearest, shortest[nearest]

        # Column -1 is the start: row i itself. A row of -1 is a column that nobody has.
        shortest, before, done, _, end, reach = jax.lax.while_loop(
            lambda s: s[3] >= 0,
            search,
            (
                jnp.full(size, jnp.inf),
                jnp.full(size, -1, jnp.int32),
                jnp.zeros(size, bool),
                jnp.asarray(i, jnp.int32),
                jnp.int32(-1),
                jnp.float32(0),
            ),
        )
        gain = jnp.where(done, reach - shortest, 0.0)
        v = v - gain
        # Rows of the columns on the tree; the end has none, and its gain is 0.
        u = u.at[jnp.where(row_of >= 0, row_of, size)].add(gain, mode="drop").at[i].add(reach)

        def flip(s: tuple) -> tuple:
            row_of, column = s
            previous = before[column]
            row = jnp.where(previous >= 0, row_of[previous], i)
            return row_of.at[column].set(row), previous

        row_of, _ = jax.lax.while_loop(lambda s: s[1] >= 0, flip, (row_of, end))
        return u, v, row_of

    empty = jnp.full(size, -1, jnp.int32)
    start = (jnp.zeros(size), jnp.zeros(size), empty)
    row_of = jax.lax.fori_loop(0, size, add, start)[2]
    return jnp.zeros(size, jnp.int32).at[row_of].set(jnp.arange(size, dtype=jnp.int32))


def nearest_pairs(x0: jax.Array, eps: jax.Array) -> jax.Array:
    """eps [B, ...] reordered so that sum |x0 - eps|^2 over the batch x0 [B, ...] is least."""
    a, b = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (x0, eps))
    # -2 a b is the squared distance up to terms of a row or of a column alone.
    return eps[assignment(-2 * a @ b.T)]
