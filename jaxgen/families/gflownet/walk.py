"""Trajectories: drawing them in one scan, and what policies and flows say along them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.data.environment import Environment

PyTree = Any

NEVER = -1e9
"""The logit of what is not allowed: finite, so that gradients stay so."""


class Outputs(NamedTuple):
    """Of states [...]: log P_F [..., actions], log P_B [..., back_actions], log flow [...].

    `logits` [..., actions]: what log P_F is the normalisation of; in flow matching, ln of the flow
    along each edge.
    """

    log_forward: jax.Array
    log_backward: jax.Array
    flow: jax.Array
    logits: jax.Array


class Heads(Protocol):
    """Policies and flows of states: (params, states [..., *state_shape]) -> Outputs."""

    def __call__(self, params: PyTree, states: jax.Array) -> Outputs:
        """See the class."""
        ...


@dataclasses.dataclass(frozen=True)
class NetworkHeads:
    """One network for both policies and the flow: params["net"], a `Policy` of enough outputs.

    learned_backward: else P_B is uniform over the parents. flow: "head", an output of its own;
    "edges", the sum of exp(logits). forward_looking: the head is what is left of ln F after the
    potential. Where stop is the only action ln F is ln R, known.
    """

    environment: Environment
    model: nn.Module
    learned_backward: bool
    flow: str = "head"
    forward_looking: bool = False

    def __call__(self, params: PyTree, states: jax.Array) -> Outputs:
        """Outputs of states [..., *state_shape]."""
        env = self.environment
        lead = states.shape[: states.ndim - len(env.state_shape)]
        features = env.features(states)
        # Flattened to a matrix: dense layers on more axes are slower in XLA on CPU.
        rows = features.reshape(-1, features.shape[-1])
        out: Any = self.model.apply({"params": params["net"]}, rows)
        raw = out.reshape(*lead, -1)
        allowed = env.allowed(states)
        logits = jnp.where(allowed, raw[..., : env.actions], NEVER)
        back = raw[..., env.actions : env.actions + env.back_actions]
        back = jnp.where(env.parents(states), back if self.learned_backward else 0.0, NEVER)
        if self.flow == "edges":
            flow = jax.nn.logsumexp(logits, axis=-1)
        else:
            flow = raw[..., -1]
            if self.forward_looking:
                flow = flow + env.potential(states)
            only_stop = allowed[..., env.stop] & (allowed.sum(-1) == 1)
            flow = jnp.where(only_stop, env.log_reward(states), flow)
        return Outputs(jax.nn.log_softmax(logits), jax.nn.log_softmax(back), flow, logits)


def tabled(environment: Environment, heads: Heads, params: PyTree) -> Heads:
    """`heads` at `params`, worked out once for every state and then looked up.

    The same numbers, at the price of `environment.count` states instead of one for each row of a
    batch at each step. The result does not read the parameters that it is called with.
    """
    table = heads(params, jnp.asarray(environment.states()))

    def look(params: PyTree, states: jax.Array) -> Outputs:
        del params
        # Parents that do not exist have no place; what is found there is masked by `parents`.
        place = jnp.clip(environment.index(states), 0, environment.count - 1)
        return Outputs(*(each[place] for each in table))

    return look


class Walk(NamedTuple):
    """What is said along trajectories [B, T], T = environment.steps, transition by transition.

    forward: log P_F of the action taken; backward: log P_B of the step back, 0 for stop. flow: ln F
    of the state before the action, next_flow of the state after it (ln R after stop). valid: the
    transition was taken and is in the part that is seen; stop: it is valid and the last. whole [B]:
    all is seen from the root to stop. Invalid entries of forward and backward are 0. log_z (): ln
    Z, where it is a parameter. inflow(): ln of the sum of edge flows into the states [B, T].
    reward: ln R at stop, 0 elsewhere.
    """

    forward: jax.Array
    backward: jax.Array
    flow: jax.Array
    next_flow: jax.Array
    reward: jax.Array
    valid: jax.Array
    stop: jax.Array
    whole: jax.Array
    log_z: jax.Array
    inflow: Callable[[], jax.Array]


def rollout(
    environment: Environment,
    heads: Heads,
    params: PyTree,
    keys: jax.Array,
    done: jax.Array,
    *,
    epsilon: float = 0.0,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Actions int32 [B, T] of trajectories from the root, and the states [B, ...] where they end.

    keys [B]: all noise of trajectory i is from keys[i]. With probability epsilon an action is
    uniform over what is allowed; else it is from P_F to the power 1 / temperature. After
    stop come further stops. done [B]: rows that stop at the root at once.
    """
    env, steps = environment, environment.steps

    def noise(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = jax.random.split(key)
        return jax.random.gumbel(a, (steps, env.actions)), jax.random.uniform(b, (steps,))

    gumbel, uniform = jax.vmap(noise)(keys)
    start = jnp.broadcast_to(jnp.asarray(env.root()), (len(keys), *env.state_shape))

    def body(carry: Any, now: Any) -> tuple[Any, jax.Array]:
        state, done = carry
        gumbel, uniform = now
        scores = heads(params, state).log_forward / temperature
        if epsilon:
            equal = jnp.where(env.allowed(state), 0.0, NEVER)
            scores = jnp.where((uniform < epsilon)[:, None], equal, scores)
        action = jnp.where(done, env.stop, jnp.argmax(scores + gumbel, axis=-1)).astype(jnp.int32)
        return (env.step(state, action), done | (action == env.stop)), action

    (end, _), actions = jax.lax.scan(
        body, (start, done), (gumbel.swapaxes(0, 1), uniform.swapaxes(0, 1))
    )
    return actions.T, end


def replayed(environment: Environment, actions: jax.Array) -> jax.Array:
    """The states [B, T, *state_shape] before each of the actions [B, T]."""
    env = environment
    start = jnp.broadcast_to(jnp.asarray(env.root()), (len(actions), *env.state_shape))

    def body(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        return env.step(state, action), state

    _, states = jax.lax.scan(body, start, actions.T)
    return states.swapaxes(0, 1)


def seen(stops: jax.Array, keys: jax.Array, length: int) -> jax.Array:
    """Which transitions [B, T] are looked at: all that were taken, or `length` of them in a row.

    stops [B, T]: where the action was stop. length = 0: all. The first of a part is uniform over
    the places where `length` transitions remain (the first, where fewer were taken).
    """
    taken = jnp.cumsum(stops, axis=1) - stops == 0
    if not length:
        return taken
    places = jnp.maximum(taken.sum(1) - length, 0) + 1
    first = jnp.floor(jax.vmap(jax.random.uniform)(keys) * places)[:, None]
    time = jnp.arange(stops.shape[1])
    return taken & (time >= first) & (time < first + length)


def walk(
    environment: Environment,
    heads: Heads,
    params: PyTree,
    actions: jax.Array,
    keys: jax.Array,
    *,
    log_z: jax.Array | float = 0.0,
    truncate: int = 0,
) -> Walk:
    """What `heads` say along the trajectories of actions [B, T]; truncate: see `seen`."""
    env = environment
    states = replayed(env, actions)
    out = heads(params, states)
    stops = actions == env.stop
    valid = seen(stops, keys, truncate)
    stop = stops & valid
    taken = jnp.take_along_axis(out.log_forward, actions[..., None], -1)[..., 0]
    # After the last transition, which is a stop, there is no state: its column is never looked at.
    after = jnp.concatenate([out.log_backward[:, 1:], out.log_backward[:, :1]], axis=1)
    back = jnp.where(stops, 0, env.back(actions))
    undone = jnp.take_along_axis(after, back[..., None], -1)[..., 0]
    reward = jnp.where(stop, env.log_reward(states), 0.0)
    flow_after = jnp.concatenate([out.flow[:, 1:], out.flow[:, :1]], axis=1)

    def inflow() -> jax.Array:
        each = jnp.broadcast_to(
            jnp.arange(env.back_actions), (*actions.shape, env.back_actions)
        ).astype(jnp.int32)
        parents, through = env.undo(states[:, :, None], each)
        edges = jnp.take_along_axis(heads(params, parents).logits, through[..., None], -1)[..., 0]
        return jax.nn.logsumexp(jnp.where(env.parents(states), edges, NEVER), axis=-1)

    return Walk(
        forward=jnp.where(valid, taken, 0.0),
        backward=jnp.where(valid & ~stops, undone, 0.0),
        flow=out.flow,
        next_flow=jnp.where(stop, reward, flow_after),
        reward=reward,
        valid=valid,
        stop=stop,
        whole=valid[:, 0] & stop.any(1),
        log_z=jnp.asarray(log_z, jnp.float32),
        inflow=inflow,
    )
