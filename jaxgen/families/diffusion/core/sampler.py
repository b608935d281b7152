"""From a solver, a grid and a denoiser to samples: one scan that carries only the state.

Image i is made from its own key alone: the prior noise from fold_in(key, 0), step n from
fold_in(fold_in(key, 1), n). So it is the same image in any batch and on any number of devices.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ROOMS, build, resolve
from jaxgen.errors import UsageError, invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.noise import GAUSSIAN, Noise
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.guidance.pair import extrapolate
from jaxgen.families.diffusion.guidance.threshold import dynamic, static
from jaxgen.families.diffusion.solvers.base import Solver, gaussian_log_prob
from jaxgen.method import Sampler, fold, normal
from jaxgen.method.chain import AGAIN, ESTIMATES, Chain, State
from jaxgen.method.streams import NOISE, STEPS

PyTree = Any
Branch = Callable[[PyTree, Any], Any]

GUIDANCE = "sample.guidance"


def prior(
    path: Path, keys: jax.Array, shape: tuple[int, ...], noise: Noise = GAUSSIAN
) -> jax.Array:
    """x at t=1 for keys [B]: sigma(1) times noise, [B, *shape] float32."""
    return path.sigma(jnp.float32(1.0)) * noise.draw(fold(keys, NOISE), shape)


def integrate(
    solver: Solver,
    denoiser: Denoiser,
    x: jax.Array,
    grid: jax.Array,
    keys: jax.Array,
    preview: int = 0,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run x [B, ...] at time grid[0] down to grid[-1], by `lax.scan`.

    preview = k > 0: also the states after every k-th step, [steps // k, B, ...].
    """
    steps = grid.shape[0] - 1
    step_keys = fold(keys, STEPS)

    def body(state: Any, inputs: Any) -> tuple[Any, None]:
        x, carry = state
        number, t, s = inputs
        return solver.step(denoiser, x, t, s, carry, fold(step_keys, number)), None

    state = (x, (solver.init(x), denoiser.init(x)))
    inputs = (jnp.arange(steps), grid[:-1], grid[1:])
    if not preview:
        (x, _), _ = jax.lax.scan(body, state, inputs)
        return x
    shown = steps // preview

    def stretch(state: Any, inputs: Any) -> tuple[Any, jax.Array]:
        state, _ = jax.lax.scan(body, state, inputs)
        return state, state[0]

    chunks = jax.tree.map(lambda a: a[: shown * preview].reshape(shown, preview), inputs)
    state, previews = jax.lax.scan(stretch, state, chunks)
    (x, _), _ = jax.lax.scan(body, state, jax.tree.map(lambda a: a[shown * preview :], inputs))
    return x, previews


def as_chain(
    solver: Solver,
    denoiser: Denoiser,
    grid: jax.Array,
    shape: tuple[int, ...],
    path: Path,
    noise: Noise = GAUSSIAN,
) -> Chain:
    """The chain of a solver on a grid: `run` gives the bits of `integrate` from the prior.

    Where the solver draws no noise all branches are the same.
    """
    times = np.asarray(grid)

    def begin(x: jax.Array) -> State:
        return x, (solver.init(x), denoiser.init(x))

    def start(keys: jax.Array) -> State:
        return begin(prior(path, keys, shape, noise))

    def step(keys: jax.Array, state: State, number: jax.Array) -> State:
        x, carry = state
        step_keys = fold(fold(keys, STEPS), number)
        return solver.step(denoiser, x, grid[number], grid[number + 1], carry, step_keys)

    def estimate(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        x, (_, memory) = state
        return denoiser(fold(fold(keys, ESTIMATES), number), x, grid[number], memory)[0].x0

    def back(keys: jax.Array, state: State, number: jax.Array, before: jax.Array) -> State:
        x, (_, memory) = state
        ratio, variance = path.transition(grid[before], grid[number])
        x = ratio * x + jnp.sqrt(variance) * normal(fold(fold(keys, AGAIN), number), shape)
        return x, (solver.init(x), memory)

    def mix(first: State, second: State, radius: float) -> State:
        return begin(math.sqrt(1 - radius**2) * first[0] + radius * second[0])

    def log_prob(keys: jax.Array, before: State, after: State, number: jax.Array) -> jax.Array:
        known, (x, carry) = solver.moments, before
        assert known is not None
        step_keys = fold(fold(keys, STEPS), number)
        mean, std, _ = known(denoiser, x, grid[number], grid[number + 1], carry, step_keys)
        return gaussian_log_prob(after[0], mean, std)

    pairs = [times[n : n + 2] for n in range(len(times) - 1)]
    return Chain(
        start=start,
        step=step,
        sample=lambda state: state[0],
        steps=len(pairs),
        step_calls=np.array([solver.calls(denoiser, pair, n) for n, pair in enumerate(pairs)]),
        estimate=estimate,
        estimate_calls=np.array([denoiser.calls(float(s)) for _, s in pairs]),
        back=back if noise.gaussian else None,
        mix=mix if noise.gaussian else None,
        log_prob=None if solver.moments is None else log_prob,
    )


def build_guidance(
    sections: Sequence[Any], branches: Mapping[str, Any], path: Path, grid: jax.Array
) -> Denoiser:
    """Apply guidance sections in order, starting from branches["cond"].

    Each function is given what its parameters name: one of `branches`, `branches` itself, `path`,
    `grid` (the solver's times) and `guided`, the result so far.
    """
    guided = branches["cond"]
    for number, section in enumerate(sections):
        option = f"{GUIDANCE}[{number}]"
        name = section if isinstance(section, str) else dict(section).get("name", "")
        wanted = inspect.signature(resolve(name, ROOMS["guidance"], option)).parameters
        available = {
            **branches,
            "branches": branches,
            "path": path,
            "grid": grid,
            "guided": guided,
        }
        missing = [
            n
            for n, p in wanted.items()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and n not in available
        ]
        if missing:
            raise invalid(
                option, name, "guidance whose denoisers exist: " + ", ".join(sorted(available)),
                f"Give the sampler branches={{{missing[0]!r}: (params, labels) -> ...}}.",
            )  # fmt: skip
        given = {n: available[n] for n in wanted if n in available}
        guided = build(section, ROOMS["guidance"], option, **given)
    return guided


def build_sampler(
    path: Path,
    shape: tuple[int, ...],
    branches: Mapping[str, Branch],
    *,
    solver: Any,
    steps: int,
    grid: Any,
    guidance: float | Sequence[Any],
    clip: str,
    preview: int = 0,
    noise: Noise = GAUSSIAN,
) -> Sampler:
    """A compiled-once `Sampler` for images of a shape; see `method.denoising` for the options.

    branches: name -> (params, labels[B]) -> what guidance may ask for under that name, at least
    `cond`. They are called once with (None, None) to count network calls, so they must not look
    into params before their denoiser is called.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise invalid("sample.steps", steps, "an integer >= 1")
    if preview < 0 or preview > steps:
        raise invalid("sample.preview", preview, f"0 (none) to steps={steps}")
    if clip not in ("none", "static", "dynamic"):
        raise invalid("sample.clip", clip, "'none', 'static', 'dynamic'")
    with jax.ensure_compile_time_eval():  # also where a loss builds a teacher's sampler
        times = build(grid, ROOMS["grid"], "sample.grid", steps=steps, path=path)
    plain = isinstance(guidance, (int, float)) and _has(branches, "uncond")
    if isinstance(guidance, (int, float)):
        guidance = [{"name": "cfg.cfg", "weight": guidance}]
    sections = list(guidance)
    chosen = build_solver(solver, path, steps)

    def denoiser(params: PyTree, labels: Any) -> Denoiser:
        held = {name: branch(params, labels) for name, branch in branches.items()}
        return clipped(build_guidance(sections, held, path, times))

    def clipped(guided: Denoiser) -> Denoiser:
        if clip == "static":
            return static(guided, path)
        return dynamic(guided, path) if clip == "dynamic" else guided

    @jax.jit
    def draw(params: PyTree, keys: jax.Array, labels: Any) -> Any:
        x = prior(path, keys, shape, noise)
        return integrate(chosen, denoiser(params, labels), x, times, keys, preview)

    def by_weight(params: PyTree, keys: jax.Array, labels: Any, weights: jax.Array) -> Any:
        held = {name: branches[name](params, labels) for name in ("cond", "uncond")}
        guided = extrapolate(held["cond"], held["uncond"], weights.reshape(-1, *(1 for _ in shape)))
        x = prior(path, keys, shape, noise)
        return integrate(chosen, clipped(guided), x, times, keys)

    counted = denoiser(None, None)

    def chain(params: PyTree, label: Any) -> Chain:
        """Each call sees as many labels as it sees images, whatever steering makes of the batch.

        label: (), or a tree of conditions, where what is [B, ...] is as many as there are images.
        """

        def of(x: jax.Array) -> Denoiser:
            def each(a: jax.Array) -> jax.Array:
                return a if a.ndim else jnp.broadcast_to(a, x.shape[:1])

            return denoiser(params, jax.tree.map(each, label))

        staged = Denoiser(
            lambda keys, x, t, memory: of(x)(keys, x, t, memory),
            init=lambda x: of(x).init(x),
            calls=counted.calls,
            path=path,
        )
        return as_chain(chosen, staged, times, shape, path, noise)

    calls = chosen.calls(counted, np.asarray(times))
    return Sampler(draw, calls, steps, chain, denoiser, by_weight if plain else None)


def _has(branches: Mapping[str, Branch], name: str) -> bool:
    """Whether the model has this denoiser: what it has not raises where it is counted."""
    try:
        branches[name](None, None).calls(1.0)
    except (KeyError, UsageError):
        return False
    return True


def build_solver(section: Any, path: Path, steps: int) -> Solver:
    """A solver section, given `path`, and `steps` where its signature asks for it."""
    name = section if isinstance(section, str) else dict(section).get("name", "")
    wanted = inspect.signature(resolve(name, ROOMS["solver"], "sample.solver")).parameters
    given = {k: v for k, v in {"path": path, "steps": steps}.items() if k in wanted}
    return build(section, ROOMS["solver"], "sample.solver", **given)


def unavailable(error: UsageError) -> Denoiser:
    """Placeholder for a denoiser that raises when guidance uses it."""

    def fail(*_: Any) -> Any:
        raise error

    return Denoiser(fail, calls=fail)
