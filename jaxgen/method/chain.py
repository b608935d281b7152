"""A sampler as a chain of steps that steering may repeat and branch, and what steering makes of it.

Samplers fold small numbers into an image's key; what steers them draws below the numbers here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

State = Any
Reward = Callable[[jax.Array], jax.Array]

BRANCHES, ESTIMATES, CHOICE, AGAIN, RESAMPLING = range(2**31 - 5, 2**31)
"""Folded into a key: for a branch's own key, for an estimate's draws, for choices among branches,
for noise that takes a state back, for resampling."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Any sampler, continuous or discrete, in `steps` steps from noise to a sample.

    start(keys [B]) -> state, a pytree of arrays [B, ...] and of scalars that depend on the number
    of the step alone. step(keys [B], state, n) -> state after step n, 0 <= n < steps. sample(state)
    -> x [B, ...], which at the end is the sample. estimate(keys [B], state, n) -> the sample [B,
    ...] that the state after n steps makes one expect. step_calls, estimate_calls [steps]: network
    evaluations of step n, and of an estimate after it. back(keys [B], state, n, m) -> the state
    after n steps, noised again to where it was after m <= n. mix(first, second, radius) -> of two
    starts a third of the same distribution, `first` at radius 0 and `second` at 1.
    log_prob(keys [B], before, after, n) -> [B]: ln of the probability with which step n takes one
    state to the next, up to what no parameter changes; 0 where it draws nothing. None where the
    chain cannot.
    """

    start: Callable[[jax.Array], State]
    step: Callable[[jax.Array, State, jax.Array], State]
    sample: Callable[[State], jax.Array]
    steps: int
    step_calls: np.ndarray
    estimate: Callable[[jax.Array, State, jax.Array], jax.Array]
    estimate_calls: np.ndarray
    back: Callable[[jax.Array, State, jax.Array, jax.Array], State] | None = None
    mix: Callable[[State, State, float], State] | None = None
    log_prob: Callable[[jax.Array, State, State, jax.Array], jax.Array] | None = None

    @property
    def calls(self) -> float:
        """Network evaluations of a sample."""
        return float(self.step_calls.sum())

    def run(self, keys: jax.Array) -> jax.Array:
        """The chain by itself: a sample [B, ...] for each key."""
        return self.finish(keys, self.start(keys))

    def finish(self, keys: jax.Array, state: State) -> jax.Array:
        """All the steps from a start: a sample [B, ...] for each key."""

        def body(state: State, number: jax.Array) -> tuple[State, None]:
            return self.step(keys, state, number), None

        return self.sample(jax.lax.scan(body, state, jnp.arange(self.steps))[0])

    def states(self, keys: jax.Array) -> State:
        """Every state on the way, [B, steps + 1, ...]; of a chain without scalars in its state."""

        def body(state: State, number: jax.Array) -> tuple[State, State]:
            state = self.step(keys, state, number)
            return state, state

        start = self.start(keys)
        _, rest = jax.lax.scan(body, start, jnp.arange(self.steps))

        def joined(first: jax.Array, later: jax.Array) -> jax.Array:
            return jnp.moveaxis(jnp.concatenate([first[None], later]), 0, 1)

        return jax.tree.map(joined, start, rest)

    def log_probs(self, keys: jax.Array, states: State) -> jax.Array:
        """`log_prob` of each step between `states`, [B, steps].

        Differentiated, it holds one step's activations at a time.
        """
        known = self.log_prob
        assert known is not None

        @jax.checkpoint
        def of_step(number: jax.Array) -> jax.Array:
            before = jax.tree.map(lambda a: a[:, number], states)
            after = jax.tree.map(lambda a: a[:, number + 1], states)
            return known(keys, before, after, number)

        return jax.lax.map(of_step, jnp.arange(self.steps)).T


@dataclasses.dataclass(frozen=True, eq=False)
class Steered:
    """fn(keys [B]) -> samples [B, ...]; calls: network evaluations for each."""

    fn: Callable[[jax.Array], jax.Array]
    calls: float

    def __call__(self, keys: jax.Array) -> jax.Array:
        """One steered sample for each key."""
        return self.fn(keys)
