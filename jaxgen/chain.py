"""A sampler as a chain of steps that steering may repeat and branch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.denoiser import Denoiser
from jaxgen.families.diffusion.path import Path
from jaxgen.families.diffusion.sampler import prior
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.families.discrete.sampler import Steps
from jaxgen.method import fold, normal

State = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Any sampler, continuous or discrete, in `steps` steps from noise to a sample.

    start(keys [B]) -> state, a pytree of arrays [B, ...] and of scalars that depend on the number
    of the step alone. step(keys [B], state, n) -> state after step n, 0 <= n < steps. sample(state)
    -> x [B, ...], which at the end is the sample. estimate(keys [B], state, n) -> the sample [B,
    ...] that the state after n steps makes one expect. step_calls, estimate_calls [steps]: network
    evaluations of step n, and of an estimate after it. back(keys [B], state, n, m) -> the state
    after n steps, noised again to where it was after m <= n; None where the chain cannot.
    """

    start: Callable[[jax.Array], State]
    step: Callable[[jax.Array, State, jax.Array], State]
    sample: Callable[[State], jax.Array]
    steps: int
    step_calls: np.ndarray
    estimate: Callable[[jax.Array, State, jax.Array], jax.Array]
    estimate_calls: np.ndarray
    back: Callable[[jax.Array, State, jax.Array, jax.Array], State] | None = None

    def run(self, keys: jax.Array) -> jax.Array:
        """The chain by itself: a sample [B, ...] for each key."""

        def body(state: State, number: jax.Array) -> tuple[State, None]:
            return self.step(keys, state, number), None

        return self.sample(jax.lax.scan(body, self.start(keys), jnp.arange(self.steps))[0])


def of_solver(
    solver: Solver, denoiser: Denoiser, grid: jax.Array, shape: tuple[int, ...], path: Path
) -> Chain:
    """The chain of a solver on a grid: `run` gives the bits of `sampler.integrate`.

    Where the solver draws no noise all branches are the same.
    """
    times = np.asarray(grid)

    def start(keys: jax.Array) -> State:
        x = prior(path, keys, shape)
        return x, (solver.init(x), denoiser.init(x))

    def step(keys: jax.Array, state: State, number: jax.Array) -> State:
        x, carry = state
        own = fold(fold(keys, 1), number)
        return solver.step(denoiser, x, grid[number], grid[number + 1], carry, own)

    def estimate(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        x, (_, memory) = state
        return denoiser(fold(fold(keys, 3), number), x, grid[number], memory)[0].x0

    def back(keys: jax.Array, state: State, number: jax.Array, before: jax.Array) -> State:
        x, (_, memory) = state
        ratio, variance = path.transition(grid[before], grid[number])
        fresh = normal(fold(fold(keys, 5), number), shape)
        x = ratio * x + jnp.sqrt(variance) * fresh
        return x, (solver.init(x), memory)

    pairs = [times[n : n + 2] for n in range(len(times) - 1)]
    return Chain(
        start=start,
        step=step,
        sample=lambda state: state[0],
        steps=len(pairs),
        step_calls=np.array([solver.calls(denoiser, pair, n) for n, pair in enumerate(pairs)]),
        estimate=estimate,
        estimate_calls=np.array([denoiser.calls(float(s)) for _, s in pairs]),
        back=back,
    )


def of_tokens(steps: Steps, params: Any, labels: Any) -> Chain:
    """The chain of a masked or discrete model's sampler, from `families.discrete.build_steps`.

    labels: int32 [B], or one for all. The state is (elements [B, N], labels [B]); `run(keys)` gives
    the bits of `build_sampler`'s for the keys fold_in(key, 1). An estimate draws what is masked
    (for uniform noise, everything) from the network's prediction, element by element, at one
    evaluation of the network (two where it is guided).
    """
    core = steps.core

    def start(keys: jax.Array) -> State:
        told = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), keys.shape)
        return steps.start(fold(keys, 1)), told

    def step(keys: jax.Array, state: State, number: jax.Array) -> State:
        x, told = state
        return steps.step(params, fold(keys, 1), x, told, number), told

    def estimate(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        x, told = state
        logits = steps.logits(params, x, told, jnp.minimum(number, steps.steps - 1))
        drawn = jax.vmap(jax.random.categorical)(fold(fold(keys, 3), number), logits)
        kept = x != core.values if core.noise == "mask" else jnp.zeros(x.shape, bool)
        kept |= number == steps.steps
        return core.examples(jnp.where(kept, x, drawn.astype(x.dtype)))

    calls = np.full(steps.steps, steps.calls)
    return Chain(
        start=start,
        step=step,
        sample=lambda state: core.examples(state[0]),
        steps=steps.steps,
        step_calls=calls,
        estimate=estimate,
        estimate_calls=calls,
    )
