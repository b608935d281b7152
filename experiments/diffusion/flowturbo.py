"""FlowTurbo: the pseudo-corrector is of order 2 at a call a step; a refiner replaces the model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_below, near
from experiments.shared.toys import MEANS, PATH, STDS, WEIGHTS, of_all
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.guidance.refine import of_network, refine, refiner_loss
from jaxgen.families.diffusion.solvers import Solver
from jaxgen.method import minimise
from jaxgen.nn.mlp import MLP
from jaxgen.testing import convergence_order, gaussian_denoiser, gaussian_flow, run_solver

PAPER = "FlowTurbo: Towards Real-time Flow-Based Image Generation with Velocity Refiner"
ENTRY = "jaxgen.families.diffusion.guidance.refine.refine"
SEEDS, STEPS, LAST, COST = 5, 10, 4, 0.05
NET = MLP(num_classes=1, out_channels=2, width=32, depth=1, scan=False)
GRID = grids.uniform(STEPS, PATH)
# Compiling takes longer than running here: half of it at this level.
FAST = {"xla_backend_optimization_level": 1}


def checks() -> list[Check]:
    """Orders on a Gaussian's flow; then a refiner trained on the mixture's exact velocity."""
    results = []
    check = "order of the pseudo-corrector at a call a step"
    results.append(near(check, _order(solvers.flowturbo(PATH, 128)), 2, 0.15))
    results.append(control(near(check, _order(solvers.euler(PATH)), 2, 0.15)))

    model, grid = of_all(), np.asarray(GRID)
    blocks = functools.partial(solvers.flowturbo, PATH, STEPS, heun=1)
    turbo = blocks(refine=LAST)
    cheap = refine(model, lambda x, v, t: 0 * x, PATH, GRID, last=LAST, cost=COST)
    # 2 of Heun, 4 of the pseudo-corrector, one step free, 4 of the refiner.
    results.append(near("cost, 10 steps", turbo.calls(cheap, grid), 2 + 4 + 4 * COST, 1e-9))
    results.append(near("cost of all by the model", blocks().calls(model, grid), 11, 1e-9))

    keys = jax.random.split(jax.random.key(8), 500)
    x = jax.random.normal(jax.random.key(7), (500, 2))
    exact = run_solver(solvers.heun(PATH), model, x, grids.uniform(200, PATH))

    def error(params: Any, size: float) -> jax.Array:
        net = of_network(NET, params, jnp.zeros(500, jnp.int32))
        guided = refine(model, lambda x, v, t: size * net(x, v, t), PATH, GRID, last=LAST)
        return _error(integrate(turbo, guided, x, GRID, keys), exact)

    fit = jax.jit(jax.vmap(_trained), compiler_options=FAST)(
        jax.vmap(jax.random.key)(jnp.arange(SEEDS)), *_data()
    )
    errors = jax.jit(jax.vmap(error, (0, None)), compiler_options=FAST)
    along = {
        denoiser: jax.jit(lambda d=denoiser: integrate(turbo, d, x, GRID, keys, 1)[1])()
        for denoiser in (model, cheap)
    }
    full = _error(along[model][-1], exact)
    check = "error at the end over that of calling the model"
    results.append(mean_below(check, errors(fit, 1.0) / full, 2.5))
    results.append(control(mean_below(check, errors(fit, 0.0) / full, 2.5)))

    # r = 0 is the velocity before, again: from the step without a call on, a straight line.
    def bend(states: jax.Array) -> jax.Array:
        return jnp.abs(jnp.diff(states[STEPS - LAST - 2 :], n=2, axis=0)).max()

    check = "bend of the path where r = 0"
    results.append(below(check, bend(along[cheap]), 1e-5))
    results.append(control(below(check, bend(along[model]), 1e-5)))
    return results


def _order(solver: Solver) -> float:
    """The measured order in float64 on the flow of N(.7, .5^2), from .9 to .1."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (16, 1), jnp.float64)
        ends = jnp.float64(0.9), jnp.float64(0.1)
        exact = gaussian_flow(PATH, x, *ends, 0.7, 0.5)
        model, keys = gaussian_denoiser(PATH, 0.7, 0.5), jax.random.split(jax.random.key(0), 16)
        # Padded with steps of length zero: one program.
        times = {n: jnp.concatenate([jnp.linspace(*ends, n + 1), jnp.full(128 - n, ends[1])])
                 for n in (32, 128)}  # fmt: skip
        solve = jax.jit(lambda grid: integrate(solver, model, x, grid, keys))
        return convergence_order(lambda n: solve(times[n]), exact, list(times))


def _error(x: jax.Array, exact: jax.Array) -> jax.Array:
    return jnp.sqrt(((x - exact) ** 2).mean())


def _data(steps: int = 500, batch: int = 64) -> tuple[np.ndarray, ...]:
    """(x0, eps [SEEDS, steps, batch, 2], number of the grid's time [SEEDS, steps]) to train on."""
    rng, shape = np.random.default_rng(0), (SEEDS, steps, batch)
    which = rng.choice(3, shape, p=WEIGHTS)
    x0 = MEANS[which] + STDS[which][..., None] * rng.normal(size=(*shape, 2))
    number = rng.integers(STEPS - LAST, STEPS, (SEEDS, steps))
    return x0.astype(np.float32), rng.normal(size=(*shape, 2)).astype(np.float32), number


def _trained(key: jax.Array, x0: jax.Array, eps: jax.Array, number: jax.Array) -> Any:
    """The refiner's parameters, trained at the times at which it will be called."""
    model, batch = of_all(), x0.shape[1]
    labels = jnp.zeros(batch, jnp.int32)
    params = NET.init(key, jnp.zeros((batch, 4)), jnp.zeros(batch), labels)["params"]
    keys = jax.random.split(key, batch)

    def loss(params: Any, data: Any) -> jax.Array:
        x0, eps, number = data
        t, h = GRID[number - 1], GRID[number - 1] - GRID[number]
        x = PATH.mix(x0, eps, t)
        return refiner_loss(model, of_network(NET, params, labels), keys, x, t, h)

    return minimise(loss, optax.adam(3e-3), params, (x0, eps, number))[0]
