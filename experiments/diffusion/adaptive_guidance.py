"""Adaptive guidance: where both branches say the same, one of them is enough."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from experiments.shared.toys import PATH, SEEDS, of_all, of_class, points
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.adaptive import (
    adaptive_guidance,
    fit_affine,
    linear_ag,
)
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.testing import gaussian_denoiser

PAPER = "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models"
ENTRY = "jaxgen.families.diffusion.guidance.adaptive.adaptive_guidance"
STEPS, WEIGHT, AGREE = 20, 3.0, 0.45


def checks() -> list[Check]:
    """The same samples with fewer calls, counted; and LinearAG on linear scores."""
    results = []
    cond = of_class(1)
    # The unconditional model is the class's own from t = AGREE down.
    uncond = limit(cond, 0.0, AGREE, cond=of_all())
    guided = cfg(cond, uncond, WEIGHT)
    # In the plane two directions agree by chance, so agreement is asked for to 1e-13, in float64.
    gaps: dict[str, list[Any]] = {"adaptive": [], "at once": []}
    calls = []
    with jax.enable_x64(True):
        whole = _runner(guided)
        for name, threshold in (("adaptive", 1 - 1e-13), ("at once", -1.0)):
            run = _runner(adaptive_guidance(guided, threshold=threshold))
            for seed in range(SEEDS):
                out, memory = run(*_start(seed))
                gaps[name].append(float(jnp.abs(out - whole(*_start(seed))[0]).max()))
                if name == "adaptive":
                    calls.append(int(memory[2][2]))
    check = f"largest change of a sample, worst of {SEEDS} seeds"
    results.append(below(check, max(gaps["adaptive"]), 1e-12))
    results.append(control(below(check, max(gaps["at once"]), 1e-12)))
    # t = 1, .95, ..., .5 disagree and .45 is the first to agree: 12 calls of two, then 8 of one.
    results.append(near("network calls, full guidance", _calls(guided), 2 * STEPS, 0))
    results.append(near("network calls, most of any seed", max(calls), 12 * 2 + 8, 0))
    results.append(control(below("network calls, full guidance", _calls(guided), 12 * 2 + 8)))
    return results + _linear()


def _linear() -> list[Check]:
    """LinearAG on Gaussians, where every eps is affine in x: fitted on 4 paths, tried on others."""
    results = []
    pair = cfg(gaussian_denoiser(PATH, 1.0, 0.5), gaussian_denoiser(PATH, -0.4, 0.5), WEIGHT)
    skip = [n % 2 == 1 for n in range(STEPS)]
    times = np.asarray(grids.uniform(STEPS, PATH))[:-1]
    good, bad = _trajectory(pair, times)
    fit = fit_affine(times, good, bad, skip)
    blind = fit._replace(weights=[[1.0, 0.0, 0.0]] * STEPS)
    worst = {"fit": 0.0, "blind": 0.0}
    whole = _runner(pair)
    for name, table in (("fit", fit), ("blind", blind)):
        run = _runner(linear_ag(pair, table))
        for seed in range(SEEDS):
            gap = jnp.abs(run(*_start(seed))[0] - whole(*_start(seed))[0]).max()
            worst[name] = max(worst[name], float(gap))
    check = f"LinearAG: largest change of a sample, worst of {SEEDS} seeds"
    results.append(below(check, worst["fit"], 1e-3))
    results.append(control(below(check, worst["blind"], 1e-3)))
    results.append(near("LinearAG: network calls", _calls(linear_ag(pair, fit)), 1.5 * STEPS, 0))
    return results


def _start(seed: int) -> tuple[jax.Array, jax.Array]:
    """Keys, and x at t=1 in the precision of the moment."""
    keys, x = points(seed)
    return keys, x.astype(jnp.zeros(()).dtype)


def _runner(denoiser: Denoiser) -> Any:
    """(keys, x [B, 2]) -> (samples [B, 2], the denoiser's last memory), by Euler's steps."""
    solver, grid = solvers.euler(PATH), grids.uniform(STEPS, PATH)

    @jax.jit
    def run(keys: jax.Array, x: jax.Array) -> Any:
        def body(state: Any, times: Any) -> Any:
            x, carry = state
            return solver.step(denoiser, x, *times, carry, keys), None

        state = (x, ((), denoiser.init(x)))
        x, (_, memory) = jax.lax.scan(body, state, (grid[:-1], grid[1:]))[0]
        return x, memory

    return run


def _calls(denoiser: Denoiser) -> float:
    return solvers.euler(PATH).calls(denoiser, np.asarray(grids.uniform(STEPS, PATH)))


def _trajectory(pair: Any, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Good and bad eps along 4 guided trajectories that no seed of the checks has."""
    keys, x = points(99, count=4)
    good, bad = [], []
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        at = (keys, x, jnp.float32(t))
        good.append(np.asarray(pair.good(*at, ())[0].eps))
        bad.append(np.asarray(pair.bad(*at, ())[0].eps))
        x = pair(*at, pair.init(x))[0].mix(PATH, jnp.float32(s))
    return np.stack(good), np.stack(bad)
