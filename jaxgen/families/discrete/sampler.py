"""Samplers: decoding by confidence or in random order, and jump processes, step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid, unknown
from jaxgen.families.discrete.bounds import remaining
from jaxgen.families.discrete.core import Core, negative_log
from jaxgen.families.discrete.schedules import Schedule
from jaxgen.method import Sampler, fold, never_dropped
from jaxgen.method.chain import ESTIMATES, Chain, State

PyTree = Any

SOLVERS = ("confidence", "random", "ancestral", "euler")
BY_COUNT = ("confidence", "random")
"""Solvers that reveal a given number of elements in each step; the others draw independently."""

DRAWN, CHOSEN = range(2)
"""Streams of a step's key: the elements' values, and which elements take them."""

RAMPS: dict[str, Callable[[float], float]] = {
    "constant": lambda r: 1.0,
    "linear": lambda r: r,
    "cosine": lambda r: 0.5 - 0.5 * float(np.cos(np.pi * r)),
}
"""The share of guidance's strength in force when a share r of the steps is done."""


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """A sampler of elements int32 [B, N], a step at a time, so that steering may take them apart.

    rows: what changes from step to step, each [steps]: `t`, `temperature`, `weight` of guidance and
    `ramp`, the share of it in force, `choice` temperature, and `after`, how many stay masked
    ("confidence", "random"), or `chance`, that an element is drawn ("ancestral", "euler"). weights
    [B]: of guidance, each image's own, in the place of the rows'. Keys [B] are the sampler's, the
    same at each step; number is the step's, 0 <= number < steps.
    """

    core: Core
    solver: str
    steps: int
    guided: bool
    rows: dict[str, jax.Array]
    weights: jax.Array | None = None

    @property
    def calls(self) -> float:
        """Network evaluations of a step."""
        return 2.0 if self.guided else 1.0

    def start(self, keys: jax.Array) -> jax.Array:
        """All noise, int32 [B, N]."""
        return self.core.start(fold(keys, self.steps))

    def logits(
        self, params: PyTree, x: jax.Array, labels: jax.Array, number: jax.Array
    ) -> jax.Array:
        """Guided and tempered [B, N, V], from the state x before a step."""
        core, count, row = self.core, labels.shape[0], self._row(number)
        if not self.guided:
            out = core.logits(params["net"], x, labels, jnp.broadcast_to(row["t"], (count,)))
        else:
            both = jnp.concatenate([labels, jnp.full_like(labels, core.spec.null_label)])
            t = jnp.broadcast_to(row["t"], (2 * count,))
            out = core.logits(params["net"], jnp.tile(x, (2, 1)), both, t)
            cond, uncond = jnp.split(out, 2)
            weight = row["weight"]
            if self.weights is not None:
                weight = 1 + (self.weights[:, None, None] - 1) * row["ramp"]
            out = uncond + weight * (cond - uncond)
        return out / row["temperature"]

    def step(
        self, params: PyTree, keys: jax.Array, x: jax.Array, labels: jax.Array, number: jax.Array
    ) -> jax.Array:
        """x after a step."""
        core, row, now = self.core, self._row(number), fold(keys, number)
        logits = self.logits(params, x, labels, number)
        shape = (core.size, core.values)
        gumbel = jax.vmap(lambda k: jax.random.gumbel(k, shape))(fold(now, DRAWN))
        drawn = jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)
        chosen = fold(now, CHOSEN)
        if self.solver in BY_COUNT:
            masked = x == core.values
            score = jax.vmap(lambda k: jax.random.gumbel(k, (core.size,)))(chosen)
            if self.solver == "confidence":
                log = jax.nn.log_softmax(logits, axis=-1)
                sure = jnp.take_along_axis(log, drawn[..., None], axis=-1)[..., 0]
                score = sure + row["choice"] * score
            # The least sure stay masked; what is revealed stays revealed.
            order = jnp.argsort(jnp.argsort(jnp.where(masked, score, jnp.inf), axis=1), axis=1)
            take = masked & (order >= row["after"])
        else:
            uniform = jax.vmap(lambda k: jax.random.uniform(k, (core.size,)))(chosen)
            take = uniform < row["chance"]
            if core.noise == "mask":
                take &= x == core.values
        return jnp.where(take, drawn, x)

    def log_prob(
        self, params: PyTree, x: jax.Array, y: jax.Array, labels: jax.Array, number: jax.Array
    ) -> jax.Array:
        """ln p [B] of a step from x to y, but for the chance of which masks are revealed.

        That is no matter of the parameters, except by confidence.
        """
        core = self.core
        log = -negative_log(self.logits(params, x, labels, number), jnp.minimum(y, core.values - 1))
        if core.noise == "mask":
            return jnp.where((x == core.values) & (y != core.values), log, 0.0).sum(1)
        chance = self._row(number)["chance"]
        return jnp.log((1 - chance) * (x == y) + chance * jnp.exp(log)).sum(1)

    def _row(self, number: jax.Array) -> dict[str, jax.Array]:
        return {name: column[number] for name, column in self.rows.items()}


def build_sampler(core: Core, **options: Any) -> Sampler:
    """The sampler that takes all of `build_steps`'s steps, in one scan."""
    steps = build_steps(core, **options)

    def drawn(steps: Steps, params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        def body(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            return steps.step(params, keys, x, labels, number), None

        x, _ = jax.lax.scan(body, steps.start(keys), jnp.arange(steps.steps))
        return core.examples(x)

    def by_weight(
        params: PyTree, keys: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        weighed = dataclasses.replace(steps, guided=True, weights=weights)
        return drawn(weighed, params, keys, labels)

    return Sampler(
        functools.partial(drawn, steps),
        calls=steps.steps * steps.calls,
        steps=steps.steps,
        chain=lambda params, label: as_chain(steps, params, label),
        by_weight=by_weight if options["guided"] else None,
    )


def as_chain(steps: Steps, params: PyTree, labels: jax.Array | int) -> Chain:
    """The chain of these steps; `run(keys)` gives the bits of `build_sampler`.

    labels: int32 [B], or one for all. The state is (elements [B, N], labels [B]). An estimate draws
    what is masked (for uniform noise, everything) from the network's prediction, element by
    element, at one evaluation of the network (two where it is guided).
    """
    core = steps.core

    def start(keys: jax.Array) -> State:
        told = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), keys.shape)
        return steps.start(keys), told

    def step(keys: jax.Array, state: State, number: jax.Array) -> State:
        x, told = state
        return steps.step(params, keys, x, told, number), told

    def estimate(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        x, told = state
        logits = steps.logits(params, x, told, jnp.minimum(number, steps.steps - 1))
        drawn = jax.vmap(jax.random.categorical)(fold(fold(keys, ESTIMATES), number), logits)
        kept = x != core.values if core.noise == "mask" else jnp.zeros(x.shape, bool)
        kept |= number == steps.steps
        return core.examples(jnp.where(kept, x, drawn.astype(x.dtype)))

    def log_prob(keys: jax.Array, before: State, after: State, number: jax.Array) -> jax.Array:
        (x, told), (y, _) = before, after
        return steps.log_prob(params, x, y, told, number)

    calls = np.full(steps.steps, steps.calls)
    return Chain(
        start=start,
        step=step,
        sample=lambda state: core.examples(state[0]),
        steps=steps.steps,
        step_calls=calls,
        estimate=estimate,
        estimate_calls=calls,
        log_prob=None if steps.solver == "confidence" else log_prob,
    )


def build_steps(
    core: Core,
    *,
    solver: str,
    steps: int,
    schedule: Schedule,
    temperature: float,
    final_temperature: float | None,
    choice_temperature: float,
    guidance: float,
    guidance_schedule: str,
    guided: bool,
) -> Steps:
    """The sampler, step by step; see `method.discrete_interpolants` for the options."""
    _check(core, solver, steps, choice_temperature, guidance_schedule)
    final = temperature if final_temperature is None else final_temperature
    for name, value in (("temperature", temperature), ("final_temperature", final)):
        if not value > 0:
            raise invalid(f"sample.{name}", value, "a number > 0")
    if guidance != 1 and not guided:
        raise never_dropped(guidance)
    done = np.arange(steps) / steps
    ramp = np.array([RAMPS[guidance_schedule](r) for r in done])
    rows = {
        "temperature": temperature + (final - temperature) * done,
        "weight": 1 + (guidance - 1) * ramp,
        "ramp": ramp,
        # Ends at 0: the last choice is by confidence alone (MaskGIT, appendix).
        "choice": choice_temperature * (1 - (np.arange(steps) + 1) / steps),
        **_revealed(core, solver, steps, schedule),
    }
    return Steps(
        core,
        solver,
        steps,
        guidance != 1,
        {k: jnp.asarray(v, jnp.int32 if v.dtype == int else jnp.float32) for k, v in rows.items()},
    )


def _revealed(core: Core, solver: str, steps: int, schedule: Schedule) -> dict[str, np.ndarray]:
    """Before each step, the time; and how many are masked after it, or each element's chance."""
    if solver in BY_COUNT:
        counts = remaining(schedule, core.size, steps)
        with jax.ensure_compile_time_eval():
            t = np.asarray(core.schedule.time(jnp.asarray(counts[:-1] / core.size)))
        return {"t": t, "after": counts[1:]}
    with jax.ensure_compile_time_eval():
        edges = jnp.linspace(1.0, 0.0, steps + 1)
        share = np.asarray(schedule.share(edges), np.float64)
        slope = np.asarray(schedule.slope(edges), np.float64)
        t = np.asarray(core.schedule.time(jnp.asarray(share[:-1])))
    if solver == "ancestral":
        chance = 1 - share[1:] / share[:-1]
    else:
        chance = np.minimum(slope[:-1] / share[:-1] / steps, 1.0)
    # The last step draws whatever is left.
    chance[-1] = 1.0
    return {"t": t, "chance": chance}


def _check(
    core: Core, solver: str, steps: int, choice_temperature: float, guidance_schedule: str
) -> None:
    """Refuse values out of range."""
    if solver not in SOLVERS:
        raise unknown("sample.solver", solver, SOLVERS)
    if solver in BY_COUNT and core.noise != "mask":
        raise invalid("sample.solver", solver, "ancestral or euler for uniform noise")
    most = core.size if solver in BY_COUNT else None
    if steps < 1 or (most is not None and steps > most):
        raise invalid("sample.steps", steps, f"1 to {most}" if most else "steps >= 1")
    if choice_temperature < 0:
        raise invalid("sample.choice_temperature", choice_temperature, "a number >= 0")
    if guidance_schedule not in RAMPS:
        raise unknown("sample.guidance_schedule", guidance_schedule, RAMPS)
