"""Environments: targets whose samples are built step by step, given by an unnormalised reward.

A directed acyclic graph of states with one root; every action but the last leads to another state,
the last one, "stop", ends the trajectory at the state where it is taken, which becomes the sample.
The graph is graded: all paths to a state have the same length. All functions are pure and work on
any leading axes, so that a batch of states needs no vmap.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.source import Target

LARGEST = 2**16
"""States up to which an environment is enumerated."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Environment(Target):
    """A graph of states and a reward of those where one may stop.

    actions: how many, stop (the last) included. back_actions: how many ways back a state can have.
    steps: actions of the longest trajectory, stop included. A state is int32 [..., *state_shape].
    """

    actions: int
    back_actions: int
    steps: int
    state_shape: tuple[int, ...]
    tokens: bool = True

    @property
    def stop(self) -> int:
        """The last action."""
        return self.actions - 1

    @abc.abstractmethod
    def root(self) -> np.ndarray:
        """The state where trajectories begin."""

    @abc.abstractmethod
    def allowed(self, state: jax.Array) -> jax.Array:
        """Actions that may be taken: bool [..., actions], at least one."""

    @abc.abstractmethod
    def parents(self, state: jax.Array) -> jax.Array:
        """Ways back that exist: bool [..., back_actions]; none at the root."""

    @abc.abstractmethod
    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The state after an allowed action [...]; after stop, the state itself."""

    @abc.abstractmethod
    def undo(self, state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The parent along a way back [...], and the action that led from there to here."""

    @abc.abstractmethod
    def back(self, action: jax.Array) -> jax.Array:
        """The way back that undoes an action other than stop."""

    @abc.abstractmethod
    def log_reward(self, state: jax.Array) -> jax.Array:
        """ln R [...], float32, of states where stop is allowed."""

    def potential(self, state: jax.Array) -> jax.Array:
        """-E [...] of any state, partial ones too; equal to `log_reward` where stop is allowed.

        What the energies add up to so far (Pan et al. 2023); by default `log_reward` itself, for
        environments where that is defined everywhere.
        """
        return self.log_reward(state)

    @abc.abstractmethod
    def features(self, state: jax.Array) -> jax.Array:
        """What a network is shown of a state: float32 [..., F]."""

    def sample(self, state: jax.Array) -> jax.Array:
        """The object that a state stands for, int32 [..., *shape]."""
        return state

    @property
    def count(self) -> int:
        """How many states there are."""
        return 0

    def states(self) -> np.ndarray:
        """All states [count, *state_shape], where there are at most `LARGEST`."""
        raise NotImplementedError

    def index(self, state: jax.Array) -> jax.Array:
        """The place of a state in `states()`, int32 [...]."""
        raise NotImplementedError

    @property
    def enumerable(self) -> bool:
        """Whether the distribution of a policy can be had exactly."""
        return 0 < self.count <= LARGEST

    @functools.cached_property
    def _log_rewards(self) -> np.ndarray:
        """ln R of every state, -inf where one may not stop; float64 [count]."""
        states = jnp.asarray(self.states())
        stops = np.asarray(self.allowed(states)[:, self.stop])
        return np.where(stops, np.asarray(self.log_reward(states), np.float64), -np.inf)

    @property
    def log_z(self) -> float | None:
        """ln of the sum of rewards, or None where it is not known."""
        return float(np.logaddexp.reduce(self._log_rewards)) if self.enumerable else None

    def target(self) -> np.ndarray:
        """The distribution R / Z over `states()`, float64 [count]."""
        logs = self._log_rewards
        return np.exp(logs - np.logaddexp.reduce(logs))


def one_hot(values: jax.Array, size: int) -> jax.Array:
    """Indicators of int32 [..., n] in [0, size), flattened: float32 [..., n * size]."""
    hot = jax.nn.one_hot(values, size)
    return hot.reshape(*values.shape[:-1], -1)


def heat_maps(tables: list[Any], *, scale: int = 0) -> np.ndarray:
    """Tables [h, w] of non-negative numbers side by side as a picture, dark where large."""
    panels = []
    for table in tables:
        table = np.asarray(table, np.float64)
        share = table / max(table.max(), 1e-12)
        # White to dark blue: the last channel fades last.
        pixels = 255 * (1 - share[..., None] * np.array([0.95, 0.85, 0.5]))
        size = scale or max(1, 160 // max(table.shape))
        big = np.rint(pixels).astype(np.uint8).repeat(size, 0).repeat(size, 1)
        panels.append(np.pad(big, ((4, 4), (4, 4), (0, 0)), constant_values=255))
    return np.concatenate(panels, axis=1)
