"""Who may see whom in a sequence, as structure: no array is made until somebody asks for one.

Every mask here lets row r see the columns up to some last one that never falls as r grows. That one
function is all that kernels need: it says what a block of scores holds and which blocks are empty.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

Index = jax.Array | int


@dataclasses.dataclass(frozen=True)
class Mask(abc.ABC):
    """Static and hashable. Rows are queries, columns keys, both numbered in the whole sequence."""

    @abc.abstractmethod
    def last(self, rows: jax.Array) -> jax.Array:
        """The last column that each row sees: int32 of the shape of `rows`, nondecreasing."""

    @abc.abstractmethod
    def first(self, columns: jax.Array) -> jax.Array:
        """The first row that sees each column: what `last` says, the other way round."""

    def allowed(self, rows: Index, columns: Index) -> jax.Array:
        """Whether each row sees each column; the two index arrays broadcast together."""
        return jnp.asarray(columns) <= self.last(jnp.asarray(rows))


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Everything sees everything."""

    def last(self, rows: jax.Array) -> jax.Array:
        """As `Mask.last`."""
        return jnp.full_like(rows, jnp.iinfo(jnp.int32).max)

    def first(self, columns: jax.Array) -> jax.Array:
        """As `Mask.first`."""
        return jnp.zeros_like(columns)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Each sees itself and what came before."""

    def last(self, rows: jax.Array) -> jax.Array:
        """As `Mask.last`."""
        return rows

    def first(self, columns: jax.Array) -> jax.Array:
        """As `Mask.first`."""
        return columns


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The first `length` see each other; the rest is causal (Raffel et al. 2020, fig. 4)."""

    length: int

    def __post_init__(self) -> None:
        """Raise UsageError for a negative length."""
        if self.length < 0:
            raise invalid("mask Prefix.length", self.length, "integers from 0")

    def last(self, rows: jax.Array) -> jax.Array:
        """As `Mask.last`."""
        return jnp.maximum(rows, self.length - 1)

    def first(self, columns: jax.Array) -> jax.Array:
        """As `Mask.first`."""
        return jnp.where(columns < self.length, 0, columns)


@dataclasses.dataclass(frozen=True)
class BlockCausal(Mask):
    """Blocks of `size` see themselves and the blocks before."""

    size: int

    def __post_init__(self) -> None:
        """Raise UsageError for a size below 1."""
        if self.size < 1:
            raise invalid("mask BlockCausal.size", self.size, "integers from 1")

    def last(self, rows: jax.Array) -> jax.Array:
        """As `Mask.last`."""
        return self.first(rows) + (self.size - 1)

    def first(self, columns: jax.Array) -> jax.Array:
        """As `Mask.first`."""
        # Not //: in a TPU kernel it asks what chip this process has.
        return columns - jax.lax.rem(columns, jax.lax.full_like(columns, self.size))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the given queries and keys lie in the sequence; numbers may be traced.

    row: the number of the first query. column: of the first key. keys: how many of the given keys
    count, from the first (None: all); the others are padding.
    """

    row: Index = 0
    column: Index = 0
    keys: Index | None = None

    @property
    def trivial(self) -> bool:
        """Whether queries and keys begin at 0 and all keys count."""
        begin = [isinstance(each, int) and each == 0 for each in (self.row, self.column)]
        return all(begin) and self.keys is None

    def array(self, columns: int) -> jax.Array:
        """Int32 [3]: row, column and how many of the given keys count."""
        keys = columns if self.keys is None else jnp.minimum(self.keys, columns)
        return jnp.stack([jnp.asarray(each, jnp.int32) for each in (self.row, self.column, keys)])


def dense(mask: Mask, rows: int, columns: int, place: Place | jax.Array) -> jax.Array | None:
    """The mask of so many rows and columns as bool [rows, columns]; None where all is allowed.

    place: or, as kernels have it, its `array`, which always makes a mask.
    """
    if isinstance(place, Place):
        if isinstance(mask, Full) and place.keys is None:
            return None
        place = place.array(columns)
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    column = jnp.arange(columns, dtype=jnp.int32)[None]
    return mask.allowed(place[0] + row, place[1] + column) & (column < place[2])
