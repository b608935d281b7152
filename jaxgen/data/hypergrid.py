"""The hypergrid: a cube of cells with rewards in its corners (Bengio et al. 2021, section 4.1)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.environment import LARGEST, Environment, heat_maps, one_hot
from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Hypergrid(Environment):
    """Cells {0 .. height-1}^dims; an action adds one to a coordinate, stop is allowed anywhere.

    log_table: ln R of a cell is `bands`, or where energies [dims, height] are given, minus their
    sum. rewards: (R0, R1, R2).
    """

    dims: int
    height: int
    rewards: tuple[float, float, float]
    energies: np.ndarray | None = None

    def root(self) -> np.ndarray:
        """The corner 0."""
        return np.zeros(self.dims, np.int32)

    def allowed(self, state: jax.Array) -> jax.Array:
        """Coordinates that can grow, and stop."""
        return jnp.concatenate([state < self.height - 1, jnp.full_like(state[..., :1], 1) > 0], -1)

    def parents(self, state: jax.Array) -> jax.Array:
        """Coordinates that are not 0."""
        return state > 0

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """One more in coordinate `action`."""
        return state + jax.nn.one_hot(action, self.dims, dtype=jnp.int32)

    def undo(self, state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One less in coordinate `back`."""
        return state - jax.nn.one_hot(back, self.dims, dtype=jnp.int32), back

    def back(self, action: jax.Array) -> jax.Array:
        """The same coordinate."""
        return action

    def log_reward(self, state: jax.Array) -> jax.Array:
        """ln(R0 + R1 [outside the middle] + R2 [in the bands]), or minus the energies' sum."""
        if self.energies is not None:
            table = jnp.asarray(self.energies, jnp.float32)
            return -table[jnp.arange(self.dims), state].sum(-1)
        outer, band = bands(state, self.height)
        r0, r1, r2 = self.rewards
        return jnp.log(r0 + r1 * outer + r2 * band)

    def features(self, state: jax.Array) -> jax.Array:
        """An indicator for each value of each coordinate."""
        return one_hot(state, self.height)

    @property
    def count(self) -> int:
        """height^dims."""
        return self.height**self.dims

    def states(self) -> np.ndarray:
        """All cells, the last coordinate fastest."""
        cells = np.indices((self.height,) * self.dims).reshape(self.dims, -1).T
        return np.ascontiguousarray(cells, np.int32)

    def index(self, state: jax.Array) -> jax.Array:
        """The coordinates as digits."""
        places = self.height ** np.arange(self.dims)[::-1]
        return (state * jnp.asarray(places, jnp.int32)).sum(-1)

    @property
    def modes(self) -> int:
        """Cells of the highest reward R0 + R1 + R2 (0 for a grid of energies)."""
        if self.energies is not None:
            return 0
        return int(np.asarray(bands(np.arange(self.height)[:, None], self.height)[1]).sum()) ** (
            self.dims
        )

    def picture(self, samples: np.ndarray, columns: int) -> np.ndarray:
        """How often samples fall on the first two coordinates, beside the target."""
        del columns
        first = np.asarray(samples).reshape(len(samples), -1)[:, :2]
        first = np.pad(first, ((0, 0), (0, 2 - first.shape[1])))
        table = np.zeros((self.height, self.height))
        np.add.at(table, (first[:, 0], first[:, 1]), 1)
        panels = [table]
        if self.enumerable:
            cube = self.target().reshape((self.height,) * self.dims)
            flat = cube.reshape(self.height, -1) if self.dims == 1 else cube
            panels.append(flat.reshape(self.height, flat.shape[1], -1).sum(-1))
        return heat_maps(panels)


def bands(state: jax.Array | np.ndarray, height: int) -> tuple[jax.Array, jax.Array]:
    """Whether every coordinate is outside the middle half, and in the bands .3 to .4 off centre.

    Decided on integers: with u = |2 x - (height - 1)|, the paper's |x / (height - 1) - 1/2| is
    u / (2 (height - 1)); in floats the bands' edges are not the same on both sides at heights
    6, 11, 16, 21, ...
    """
    top = height - 1
    u = jnp.abs(2 * jnp.asarray(state) - top)
    outer = (2 * u > top).all(-1)
    band = ((5 * u > 3 * top) & (5 * u < 4 * top)).all(-1)
    return outer, band


def hypergrid(
    dims: int = 2,
    height: int = 8,
    r0: float = 0.1,
    r1: float = 0.5,
    r2: float = 2.0,
    split: str = "train",
) -> Hypergrid:
    """The grid with bands of reward near its 2^dims corners. Both splits are the same target.

    Raises UsageError for sizes below 1 and 2 and for rewards that are not positive (R0) or negative
    (R1, R2).
    """
    del split
    if r0 <= 0 or r1 < 0 or r2 < 0:
        raise invalid("source.r0, r1, r2", (r0, r1, r2), "r0 > 0, r1 >= 0, r2 >= 0")
    return _grid(dims, height, (r0, r1, r2), None)


def additive(
    dims: int = 2, height: int = 8, spread: float = 1.0, seed: int = 0, split: str = "train"
) -> Hypergrid:
    """The grid with energies that are sums over coordinates: normal steps of size `spread`.

    E(x) = sum_d e_d(x_d), where e_d(0) = 0 and e_d(k) - e_d(k-1) is drawn from `seed`.
    """
    del split
    if spread < 0:
        raise invalid("source.spread", spread, "a number >= 0")
    steps = spread * np.random.default_rng(seed).standard_normal((max(dims, 1), max(height, 1)))
    steps[:, 0] = 0
    return _grid(dims, height, (1.0, 0.0, 0.0), np.cumsum(steps, axis=1))


def _grid(
    dims: int, height: int, rewards: tuple[float, float, float], energies: np.ndarray | None
) -> Hypergrid:
    if dims < 1:
        raise invalid("source.dims", dims, "dims >= 1")
    if not 2 <= height <= LARGEST:
        raise invalid("source.height", height, f"2 to {LARGEST}")
    return Hypergrid(
        shape=(dims,),
        levels=height,
        actions=dims + 1,
        back_actions=dims,
        steps=dims * (height - 1) + 1,
        state_shape=(dims,),
        dims=dims,
        height=height,
        rewards=rewards,
        energies=energies,
    )
