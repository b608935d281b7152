"""Enumerated environments: what a policy samples, exactly, by dynamic programming."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.environment import Environment

PyTree = Any


class Graph(NamedTuple):
    """An environment as tables over its N states.

    children [N, actions - 1] and parents [N, back_actions]: places of states, the state's own
    where there is none. has_child, has_parent: bool. through [N, back_actions]: the action from the
    parent. rewards [N]: ln R, 0 where stopping is not allowed. target [N]: R / Z.
    """

    states: np.ndarray
    children: np.ndarray
    has_child: np.ndarray
    parents: np.ndarray
    has_parent: np.ndarray
    through: np.ndarray
    rewards: np.ndarray
    target: np.ndarray
    log_z: float
    root: int
    steps: int


def graph(environment: Environment) -> Graph:
    """The tables of an enumerable environment."""
    env = environment
    states = env.states()
    count = len(states)

    @jax.jit
    def edges(here: jax.Array) -> tuple[jax.Array, ...]:
        def each(number: int) -> tuple[jax.Array, jax.Array]:
            every = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32), (count, number))
            return jnp.repeat(here[:, None], number, axis=1), every

        child = env.index(env.step(*each(env.actions - 1)))
        parent, through = env.undo(*each(env.back_actions))
        return env.allowed(here)[:, :-1], child, env.parents(here), env.index(parent), through

    has_child, children, has_parent, parents, through = map(np.asarray, edges(jnp.asarray(states)))
    itself = np.arange(count)[:, None]
    target = env.target()
    log_z = env.log_z
    assert log_z is not None
    return Graph(
        states=states,
        children=np.where(has_child, children, itself),
        has_child=has_child,
        parents=np.where(has_parent, parents, itself),
        has_parent=has_parent,
        through=np.where(has_parent, through, 0),
        rewards=np.where(target > 0, np.log(np.maximum(target, 1e-300)) + log_z, 0.0),
        target=target,
        log_z=log_z,
        root=int(env.index(jnp.asarray(env.root()))),
        steps=env.steps,
    )


def visits(tables: Graph, log_forward: jax.Array) -> jax.Array:
    """The probability [N] that a trajectory of P_F passes each state. log_forward [N, actions]."""
    chance = jnp.where(tables.has_child, jnp.exp(log_forward[:, :-1]), 0.0)
    mass = jnp.zeros(len(tables.states)).at[tables.root].set(1.0)
    return _spread(mass, chance, tables.children, tables.steps)


def back_visits(tables: Graph, log_backward: jax.Array) -> jax.Array:
    """The probability [N] that P_B, from a sample of the target, passes each state."""
    chance = jnp.where(tables.has_parent, jnp.exp(log_backward), 0.0)
    return _spread(jnp.asarray(tables.target, jnp.float32), chance, tables.parents, tables.steps)


def _spread(mass: jax.Array, chance: jax.Array, places: np.ndarray, steps: int) -> jax.Array:
    """Sum over time of mass that moves along edges; the graph is graded, so it ends."""

    def body(mass: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        moved = jnp.zeros_like(mass).at[places].add(mass[:, None] * chance)
        return moved, mass

    _, history = jax.lax.scan(body, mass, None, length=steps)
    return history.sum(0)


def terminating(tables: Graph, log_forward: jax.Array) -> jax.Array:
    """The distribution [N] of where trajectories of P_F stop."""
    return visits(tables, log_forward) * jnp.exp(log_forward[:, -1])


MEANINGS: dict[str, tuple[str | None, str]] = {
    "total_variation": (
        "lower",
        "The share of samples that would have to be others for their distribution to be the "
        "target's: 0 to 1.",
    ),
    "kl": ("lower", "The divergence, in nats, of the samples' distribution from the target's."),
    "elbo_gap": (
        "lower",
        "How far the lower bound on ln Z by the model's own trajectories is from it, in nats.",
    ),
    "eubo_gap": (
        "lower",
        "How far the upper bound on ln Z by trajectories to the target's samples is from it, in "
        "nats; large where a mode is missed.",
    ),
}
"""Of each of `scores`: which is better, and what it tells."""


def scores(tables: Graph, log_forward: jax.Array, log_backward: jax.Array) -> dict[str, jax.Array]:
    """How far the policy is from the target, in nats where it is a log.

    total_variation and kl (of the policy's samples from the target) are of the terminating
    distribution. elbo = E_{P_F}[ln R + ln P_B - ln P_F] <= ln Z <= eubo, the same under the target
    and P_B (Blessing et al. 2024): their distances from ln Z are divergences of trajectories.
    """
    reach = visits(tables, log_forward)
    model = reach * jnp.exp(log_forward[:, -1])
    target = jnp.asarray(tables.target, jnp.float32)
    rewards = jnp.asarray(tables.rewards, jnp.float32)
    inside = target > 0
    ratio = jnp.log(jnp.maximum(model, 1e-38)) - jnp.log(jnp.maximum(target, 1e-38))
    kl = jnp.where(inside & (model > 0), model * ratio, 0.0).sum()

    # ln P_B - ln P_F of the edge into each state along each backward trajectory.
    parent_policy = log_forward[tables.parents, tables.through]
    gain = jnp.where(tables.has_parent, log_backward - parent_policy, 0.0)
    edge = jnp.where(tables.has_parent, reach[tables.parents] * jnp.exp(parent_policy), 0.0)
    ends = jnp.where(inside, rewards - log_forward[:, -1], 0.0)
    elbo = (edge * gain).sum() + (model * ends).sum()
    back = back_visits(tables, log_backward)[:, None] * jnp.exp(log_backward)
    eubo = (jnp.where(tables.has_parent, back, 0.0) * gain).sum() + (target * ends).sum()
    return {
        "total_variation": 0.5 * jnp.abs(model - target).sum(),
        "kl": kl,
        "elbo_gap": tables.log_z - elbo,
        "eubo_gap": eubo - tables.log_z,
    }
