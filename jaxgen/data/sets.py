"""Sets of a fixed size with an energy for each item (Pan et al. 2023, section 5.1)."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.environment import Environment
from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sets(Environment):
    """`size` of `items` things, put in one by one in any order; ln R = -(sum of their energies).

    A state is an indicator of what is in. A set of k has k ways back.
    """

    items: int
    size: int
    energies: np.ndarray

    def root(self) -> np.ndarray:
        """The empty set."""
        return np.zeros(self.items, np.int32)

    def allowed(self, state: jax.Array) -> jax.Array:
        """What is not in, until the set is full; then stop."""
        full = (state.sum(-1) >= self.size)[..., None]
        return jnp.concatenate([(state == 0) & ~full, full], -1)

    def parents(self, state: jax.Array) -> jax.Array:
        """What is in."""
        return state > 0

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """`action` is in."""
        return jnp.minimum(state + jax.nn.one_hot(action, self.items, dtype=jnp.int32), 1)

    def undo(self, state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`back` is out."""
        return jnp.maximum(state - jax.nn.one_hot(back, self.items, dtype=jnp.int32), 0), back

    def back(self, action: jax.Array) -> jax.Array:
        """Take it out."""
        return action

    def log_reward(self, state: jax.Array) -> jax.Array:
        """Minus the energy of what is in, whether the set is full or not."""
        return -(state * jnp.asarray(self.energies, jnp.float32)).sum(-1)

    def features(self, state: jax.Array) -> jax.Array:
        """The indicator."""
        return state.astype(jnp.float32)

    @property
    def count(self) -> int:
        """Sets of at most `size`."""
        return sum(math.comb(self.items, k) for k in range(self.size + 1))

    @property
    def log_z(self) -> float:
        """ln of the elementary symmetric polynomial of exp(-energies), exact at any size."""
        logs = np.full(self.size + 1, -np.inf)
        logs[0] = 0.0
        for energy in np.asarray(self.energies, np.float64):
            logs[1:] = np.logaddexp(logs[1:], logs[:-1] - energy)
        return float(logs[-1])

    @functools.cached_property
    def _place(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes of the sets of at most `size`, in order, and the place of every code."""
        codes = np.arange(2**self.items)
        inside = (codes[:, None] >> np.arange(self.items)) & 1
        kept = codes[inside.sum(1) <= self.size]
        place = np.zeros(2**self.items, np.int32)
        place[kept] = np.arange(len(kept))
        return inside[kept].astype(np.int32), place

    @property
    def enumerable(self) -> bool:
        """Whether there are few enough sets; `items` bounds the table of codes."""
        return self.items <= 20 and super().enumerable

    def states(self) -> np.ndarray:
        """All sets of at most `size`, by the number that their bits write."""
        return self._place[0]

    def index(self, state: jax.Array) -> jax.Array:
        """By the table of codes."""
        code = (state << jnp.arange(self.items)).sum(-1)
        return jnp.asarray(self._place[1])[code]

    def picture(self, samples: np.ndarray, columns: int) -> np.ndarray:
        """A bar for each item: its share of the samples, filled from below."""
        del columns
        share = np.asarray(samples, np.float64).mean(0)
        height = 120
        filled = np.arange(height)[::-1, None] < height * share
        grey = np.where(filled.repeat(8, 1), 60, 235).astype(np.uint8)
        grey[:, 7::8] = 255
        return grey[..., None].repeat(3, -1)


def sets(
    items: int = 16, size: int = 4, spread: float = 1.0, seed: int = 0, split: str = "train"
) -> Sets:
    """`size` of `items`, with normal energies of standard deviation `spread` drawn from `seed`."""
    del split
    if not 1 <= size <= items:
        raise invalid("source.size", size, f"1 to items={items}")
    if spread < 0:
        raise invalid("source.spread", spread, "a number >= 0")
    return Sets(
        shape=(items,),
        levels=2,
        actions=items + 1,
        back_actions=items,
        steps=size + 1,
        state_shape=(items,),
        items=items,
        size=size,
        energies=spread * np.random.default_rng(seed).standard_normal(items),
    )
