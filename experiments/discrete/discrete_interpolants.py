"""Discrete interpolants: tokens masked on a schedule, and two ways to unmask them."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from jaxgen.families.discrete.core import Core, Tokens
from jaxgen.families.discrete.sampler import build_sampler
from jaxgen.families.discrete.schedules import Schedule, arccos, cosine, linear
from jaxgen.method import Spec

PAPER = "[MASK] is All You Need"
ENTRY = "jaxgen.families.discrete.discrete_interpolants"
TOKENS, VALUES, SAMPLES = 4, 3, 20_000


def distribution() -> tuple[np.ndarray, np.ndarray]:
    """All strings of 4 tokens of 3 values, and a joint distribution that no product is near."""
    states = np.array(list(itertools.product(range(VALUES), repeat=TOKENS)))
    rng = np.random.default_rng(0)
    pairs = (states[:, 0] == states[:, 1]) & (states[:, 2] == states[:, 3])
    weights = rng.gamma(0.5, size=len(states)) * np.where(pairs, 1.0, 0.02)
    return states, weights / weights.sum()


class Posterior:
    """p(token | what is not masked), enumerated; `timed`, by Bayes' rule at the time it is told."""

    def __init__(self, schedule: Schedule, timed: bool) -> None:
        """schedule: the share of masks at a time."""
        self.schedule, self.timed = schedule, timed

    def apply(self, variables: Any, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """Logits [B, N, V]."""
        states, weights = distribution()
        masked = x[:, None] == VALUES
        fits = masked | (x[:, None] == jnp.asarray(states))
        log = jnp.where(fits, 0.0, -jnp.inf)
        if self.timed:
            share = self.schedule.share(options["noise"])[:, None, None]
            log = jnp.where(fits, jnp.where(masked, jnp.log(share), jnp.log1p(-share)), -jnp.inf)
            # At t = 1 nothing is unmasked: ln 0 stands for no element.
            log = jnp.where(fits & ~masked & (share >= 1), -1e9, log)
        posterior = jax.nn.softmax(log.sum(-1) + jnp.log(jnp.asarray(weights)), axis=-1)
        hot = jax.nn.one_hot(states, VALUES)
        return jnp.log(jnp.einsum("bs,snv->bnv", posterior, hot) + 1e-30)


def core(schedule: Schedule, timed: bool) -> Core:
    """The exact model of the law."""
    spec = Spec(shape=(1, TOKENS), num_classes=1, levels=VALUES, tokens=True)
    return Core(spec, Posterior(schedule, timed), Tokens(VALUES), schedule, "mask", timed)


def distance(model: Core, **options: Any) -> float:
    """Total variation of samples' frequencies from the law."""
    settings: dict[str, Any] = dict(
        schedule=model.schedule,
        temperature=1.0,
        final_temperature=None,
        choice_temperature=0.0,
        guidance=1.0,
        guidance_schedule="constant",
        guided=False,
    )
    sampler = build_sampler(model, **{**settings, **options})
    keys = jax.random.split(jax.random.key(1), SAMPLES)
    made = jax.jit(sampler.fn)({"net": {}}, keys, jnp.zeros(SAMPLES, jnp.int32))
    code = np.asarray(made).reshape(SAMPLES, TOKENS) @ VALUES ** np.arange(TOKENS)[::-1]
    shares = np.bincount(code, minlength=VALUES**TOKENS) / SAMPLES
    return 0.5 * float(np.abs(shares - distribution()[1]).sum())


def checks() -> list[Check]:
    """Exact posterior: small steps give the joint, one step does not; time need not be told."""
    _, weights = distribution()
    # Mean distance of this many exact draws: below it nothing can be asked.
    floor = float(np.sqrt(2 * weights * (1 - weights) / (np.pi * SAMPLES)).sum() / 2)
    results = [below("the floor of this many draws", floor, 0.02)]
    for name, schedule in (("linear", linear()), ("cosine", cosine())):
        euler = distance(core(schedule, False), solver="euler", steps=256)
        results.append(below(f"TV, velocity in 256 steps, {name}", euler, 0.02))
    results.append(
        below(
            "TV, 4 steps in random order",
            distance(core(linear(), False), solver="random", steps=4),
            0.02,
        )
    )
    # The control: all at once, so that tokens do not see each other.
    results.append(
        control(
            below(
                "TV, velocity in 1 step, linear",
                distance(core(linear(), False), solver="euler", steps=1),
                0.02,
            )
        )
    )

    # The share of masks is the schedule's.
    keys = jax.random.split(jax.random.key(2), 20_000)
    for name, schedule in (("linear", linear()), ("cosine", cosine()), ("arccos", arccos())):
        model = core(schedule, False)
        draws = jax.vmap(lambda k: jax.random.uniform(k, (TOKENS,)))(keys)
        x = model.noised(
            keys, jnp.zeros((len(keys), TOKENS), jnp.int32), draws < schedule.share(0.3)
        )
        expected = {
            "linear": 0.3,
            "cosine": np.sin(0.15 * np.pi),
            "arccos": np.arccos(0.7) * 2 / np.pi,
        }
        results.append(
            near(f"share of masks at t = .3, {name}", (x == VALUES).mean(), expected[name], 0.006)
        )

    # Told the time or not, the posterior is the same.
    states, _ = distribution()
    x = jnp.where(jnp.arange(TOKENS) % 2 == 0, jnp.asarray(states), VALUES)
    t = jnp.full(len(x), 0.4)
    labels = jnp.zeros(len(x), jnp.int32)
    told, seen = (
        jnp.exp(core(linear(), timed).logits({}, x, labels, t)) for timed in (True, False)
    )
    results.append(below("explicit against implicit time", jnp.abs(told - seen).max(), 1e-5))
    return results
