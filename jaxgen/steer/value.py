"""Soft values fitted to a frozen chain's own rollouts: SVDD-MC, for `svdd.svdd(value=...)`.

Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft
Value-Based Decoding": a reward of finished samples is regressed on the states that
they came from, so that decoding asks a small network and not the sampler's own estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid, unknown
from jaxgen.method import fold
from jaxgen.method.chain import Chain, Reward, State
from jaxgen.nn.mlp import MLP
from jaxgen.steer.expected import minimise_expected
from jaxgen.steer.svdd import Value

ROLLOUT, STEP = range(2)
"""A pair's streams: of which rollout, and after which step."""

PyTree = Any

TARGETS = ("soft", "mean")


def rollouts(chain: Chain, reward: Reward, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(states x [steps - 1, B, D] after steps 1 to steps - 1, rewards [B] of what they became).

    What svdd asks values of: after the last step it is the reward itself that chooses.
    """

    def body(state: State, number: jax.Array) -> tuple[State, jax.Array]:
        state = chain.step(keys, state, number)
        return state, chain.sample(state).reshape(keys.shape[0], -1).astype(jnp.float32)

    state, x = jax.lax.scan(body, chain.start(keys), jnp.arange(chain.steps))
    return x[:-1], reward(chain.sample(state))


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """fit(key) -> (params, losses [updates]), to be jitted, and vmapped over keys for many fits.

    value(params) -> the function that `svdd` takes.
    """

    fit: Callable[[jax.Array], tuple[PyTree, jax.Array]]
    value: Callable[[PyTree], Value]


def regression(
    chain: Chain,
    reward: Reward,
    *,
    alpha: float,
    target: str = "soft",
    count: int = 2048,
    updates: int = 1000,
    batch: int = 256,
    width: int = 64,
    depth: int = 2,
    learning_rate: float = 5e-3,
) -> Regression:
    """Values of a chain's states from `count` rollouts, by an MLP; the chain stays as it is.

    target "soft": v = alpha ln E[exp(reward / alpha) | state], by the loss exp(u) - y u of u = v /
    alpha, whose least mean is at u = ln E[y]; y = exp(reward / alpha), divided by its mean. "mean":
    E[reward | state] by squares: another by a constant where the reward given a state is normal and
    of one variance, and steadier where y spreads far. The MLP sees a state (divided by its step's
    root mean square) and n / steps, and is trained on pairs of all steps and rollouts at once,
    `batch` in each of `updates`. For chains of real numbers, and for one label.

    Raises UsageError for options out of range, and a chain of one step, which asks no values.
    """
    if not alpha > 0:
        raise invalid("steer.alpha", alpha, "a temperature > 0")
    if target not in TARGETS:
        raise unknown("steer.target", target, TARGETS)
    if chain.steps < 2 or count < 2:
        raise invalid("steer.count", (chain.steps, count), "2 or more steps, and rollouts")
    model = MLP(1, 1, width, depth)

    def network(params: PyTree, x: jax.Array, number: jax.Array) -> jax.Array:
        """u [B] of states x [B, D] after step `number` [B]."""
        scaled = x / params["size"][number - 1][:, None]
        labels = jnp.zeros(x.shape[0], jnp.int32)
        variables = {"params": params["net"]}
        out: Any = model.apply(variables, scaled, number / chain.steps, labels)
        values: jax.Array = out[:, 0]
        return values

    def targets(rewards: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(y [B], shift, scale): values are shift + scale u."""
        if target == "soft":
            middle = jax.nn.logsumexp(rewards / alpha) - jnp.log(len(rewards))
            return jnp.exp(rewards / alpha - middle), alpha * middle, jnp.float32(alpha)
        shift, scale = rewards.mean(), rewards.std()
        return (rewards - shift) / scale, shift, scale

    def run(key: jax.Array) -> tuple[PyTree, jax.Array]:
        for_draws, for_start, for_fit = jax.random.split(key, 3)
        x, rewards = rollouts(chain, reward, jax.random.split(for_draws, count))
        y, shift, scale = targets(rewards)
        size = jnp.sqrt((x**2).mean((1, 2)) + 1e-12)
        held = {"size": size, "shift": shift, "scale": scale}

        def loss(net: PyTree, keys: jax.Array) -> jax.Array:
            which = jax.vmap(lambda k: jax.random.randint(k, (), 0, count))(fold(keys, ROLLOUT))
            number = jax.vmap(lambda k: jax.random.randint(k, (), 1, chain.steps))(fold(keys, STEP))
            u, wanted = network({"net": net, **held}, x[number - 1, which], number), y[which]
            return (jnp.exp(u) - wanted * u if target == "soft" else (u - wanted) ** 2).mean()

        time, label = jnp.zeros(1), jnp.zeros(1, jnp.int32)
        net = model.init(for_start, x[0, :1], time, label)["params"]
        adam = optax.adam(optax.cosine_decay_schedule(learning_rate, updates))
        net, losses = minimise_expected(loss, adam, net, for_fit, steps=updates, batch=batch)
        return {"net": net, **held}, losses

    def value(params: PyTree) -> Value:
        def of(state: State, number: jax.Array) -> jax.Array:
            x = chain.sample(state)
            x = x.reshape(x.shape[0], -1).astype(jnp.float32)
            u = network(params, x, jnp.broadcast_to(number, x.shape[:1]))
            return params["shift"] + params["scale"] * u

        return of

    return Regression(run, value)
