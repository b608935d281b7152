"""A ring of rows in the state of training: replayed trajectories, persistent chains.

It is saved and resumed with the state, and lies on a mesh cut along its rows (`nn.placement`).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

PyTree = Any


class Ring(flax.struct.PyTreeNode):
    """rows: arrays [size, ...]; count int32 (): rows ever put in, modulo what matters."""

    rows: PyTree
    count: jax.Array

    @property
    def size(self) -> int:
        """How many rows there is room for."""
        return jax.tree.leaves(self.rows)[0].shape[0]


def ring_of(rows: PyTree) -> Ring:
    """A ring whose room is these rows, none of them put in yet."""
    return Ring(rows=rows, count=jnp.zeros((), jnp.int32))


def put(ring: Ring, rows: PyTree) -> Ring:
    """The oldest rows replaced by these [B, ...] (the last of them, where B > size)."""
    size = ring.size
    rows = jax.tree.map(lambda a: a[-size:], rows)
    fresh = jax.tree.leaves(rows)[0].shape[0]
    place = (ring.count + jnp.arange(fresh)) % size
    held = jax.tree.map(lambda a, b: a.at[place].set(b), ring.rows, rows)
    # The count never overflows: after the ring is full only its place in it matters.
    count = ring.count + fresh
    return Ring(rows=held, count=jnp.where(count >= 2 * size, count - size, count))


def turn(ring: Ring, batch: int) -> PyTree:
    """The rows [batch, ...] whose turn it is: each comes up once in size / batch turns.

    Row b of turn g is row b * size / batch + g of the ring, so that no row leaves its device.
    Raises UsageError where the batch does not divide the size.
    """
    turns = _turns(ring, batch)
    place = ring.count % turns
    return jax.tree.map(lambda a: a.reshape(batch, turns, *a.shape[1:])[:, place], ring.rows)


def turned(ring: Ring, rows: PyTree) -> Ring:
    """The ring with these rows in the place of those that `turn` gave; the next ones are up."""
    batch = jax.tree.leaves(rows)[0].shape[0]
    turns = _turns(ring, batch)
    place = ring.count % turns

    def back(a: jax.Array, b: jax.Array) -> jax.Array:
        return a.reshape(batch, turns, *a.shape[1:]).at[:, place].set(b).reshape(a.shape)

    return Ring(rows=jax.tree.map(back, ring.rows, rows), count=(ring.count + 1) % turns)


def _turns(ring: Ring, batch: int) -> int:
    if ring.size % batch:
        raise invalid("method.buffer", ring.size, f"a multiple of the batch size {batch}")
    return ring.size // batch
