"""Laws of a solver: its order, its calls, both ends, and examples by themselves."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, linear
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.testing.convergence import run_solver, strong_order, weak_order
from jaxgen.testing.exact import ASYMMETRIC, mixture_denoiser
from jaxgen.testing.functions import ROUNDING
from jaxgen.testing.naming import law
from jaxgen.testing.samplers import check_sampler

Build = Callable[[Path, int], Solver]
"""solver(path, steps); most ignore the number of steps."""

ORDER = "the measured order of convergence is the declared one"
ENDS = "a solver is finite on any grid"
CALLS = "calls are counted truthfully"


def check_solver(build: Build, *, each: bool = False) -> None:
    """A solver's laws, on the linear path; build(path, steps) -> Solver.

    each: see `check_order`, which is left out for a solver that declares order 0 or whose calls
    depend on x.
    """
    path, steps = linear(), 5
    solver = build(path, steps)
    denoiser = mixture_denoiser(path, *map(jnp.asarray, ASYMMETRIC))
    keys = jax.random.split(jax.random.key(0), 4)
    if solver.times is not None and solver.order:
        check_order(build, each=each)
    check_ends(solver, denoiser, prior(path, keys, (2,)))
    check_calls(solver, denoiser, path, steps)
    grid = grids.uniform(steps, path)

    @jax.jit
    def draw(params: None, keys: jax.Array, labels: jax.Array) -> jax.Array:
        x = integrate(solver, denoiser, prior(path, keys, (2,)), grid, keys)
        assert isinstance(x, jax.Array)  # there are no previews
        return x

    check_sampler(draw, None, jnp.zeros(8, jnp.int32), atol=ROUNDING)


@law(ORDER)
def check_order(build: Build, *, each: bool = False) -> float:
    """The order that was measured, within reach of the declared one.

    Of the path to an asymmetric mixture in float64, between .3 below and .7 above (errors of 24 to
    96 steps still fall a little faster than they will); of a stochastic solver in law, without
    sampling, within .2. each: the solver wants to know how many steps there are, so that each
    number of them is a program. Raises AssertionError where it diverges.
    """
    declared = build(linear(), 8)
    if declared.stochastic:
        measured, below, above = weak_order(build), 0.2, 0.2
    else:
        measured, below, above = strong_order(build, each=each), 0.3, 0.7
    low, high = declared.order - below, declared.order + above
    assert low < measured < high, f"declared {declared.order}, measured {measured:.2f}"
    return measured


@law(ENDS)
def check_ends(solver: Solver, denoiser: Denoiser, x: jax.Array) -> None:
    """One step over everything, a few steps, and steps of zero length stay finite; x at t=1."""
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    run = jax.jit(lambda grid: integrate(solver, denoiser, x, grid, keys))
    for grid in ((1, 0, 0, 0), (1, 0.5, 0.2, 0), (1, 1, 0.5, 0), (1, 0.5, 0.5, 0)):
        out = run(jnp.asarray(grid, x.dtype))
        assert jnp.isfinite(out).all(), f"not finite on the grid {list(grid)}"


@law(CALLS)
def check_calls(solver: Solver, denoiser: Denoiser, path: Path, steps: int = 5) -> None:
    """The number of network calls that a solver announces is the number that run.

    NaN where it depends on x; for x [2, 2] on `steps` even steps from noise to data.
    """
    seen: list[int] = []

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: object) -> object:
        jax.debug.callback(lambda: seen.append(1))
        return denoiser(keys, x, t, memory)

    grid = grids.uniform(steps, path)
    counting = Denoiser(call, init=denoiser.init, path=path)  # type: ignore[arg-type]
    x = prior(path, jax.random.split(jax.random.key(0), 2), (2,))
    jax.block_until_ready(run_solver(solver, counting, x, grid))
    jax.effects_barrier()
    said = solver.calls(counting, np.asarray(grid))
    right = np.isnan(said) if solver.times is None else said == len(seen)
    assert right, f"said {said}, made {len(seen)}"
