"""Flows of an environment: what is learned, from which trajectories, and how it is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.data.environment import Environment
from jaxgen.families.gflownet import exact
from jaxgen.families.gflownet.losses import Loss
from jaxgen.families.gflownet.replay import Replay, mix
from jaxgen.families.gflownet.walk import Heads, NetworkHeads, rollout, tabled, walk
from jaxgen.method import Batch, LossFn, Metrics, TrainState, example_keys, fold
from jaxgen.method.learning import Prepare
from jaxgen.method.ring import Ring, put

PyTree = Any
ROLLOUT, PART, REPLAY = range(3)
"""A trajectory's streams: its actions, which part of it is seen, and whether it is replaced."""


@dataclasses.dataclass(frozen=True, eq=False)
class Flows:
    """Policies and flows of one network, and the loss that balances them.

    Where the loss has no flows, ln Z is log_z_rate times params["log_z"].
    """

    env: Environment
    heads: NetworkHeads
    loss: Loss
    log_z_rate: float

    def fresh(self, key: jax.Array) -> dict[str, PyTree]:
        """First parameters."""
        features = self.env.features(jnp.asarray(self.env.root())[None])
        params: dict[str, Any] = {"net": self.heads.model.init(key, features)["params"]}
        if self.loss.flow == "none":
            params["log_z"] = jnp.zeros(())
        return params

    def heads_for(self, params: PyTree, batch_size: int) -> Heads:
        """The heads, for a batch of trajectories: looked up in a table where that is quicker."""
        if self.env.enumerable and self.env.count <= batch_size * self.env.steps:
            return tabled(self.env, self.heads, params)
        return self.heads

    def log_z(self, params: PyTree) -> jax.Array:
        """ln Z ()."""
        if self.loss.flow == "none":
            return self.log_z_rate * params["log_z"]
        return self.heads(params, jnp.asarray(self.env.root())[None]).flow[0]


def flow_loss(flows: Flows, truncate: int) -> LossFn:
    """The mean over trajectories batch["actions"] [B, T] of the loss; truncate: see `walk.seen`."""

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        z = flows.log_z(params)
        keys = fold(example_keys(key, batch), PART)
        heads = flows.heads_for(params, len(keys))
        path = walk(flows.env, heads, params, batch["actions"], keys, log_z=z, truncate=truncate)
        metrics = {"log_z": z, "steps": path.valid.sum(1).astype(jnp.float32).mean()}
        return flows.loss.of(path).mean(), (metrics, extra)

    return loss


def rollouts(flows: Flows, past: Replay, *, epsilon: float, temperature: float) -> Prepare:
    """Before an update: trajectories of the current policy, some of them replaced by past ones."""
    env = flows.env

    def prepare(
        state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, Batch, Metrics]:
        label, keys = batch["label"], example_keys(key, batch)
        # All False, as no label is negative; computed from the batch, to be sharded as it is.
        actions, end = rollout(
            env,
            flows.heads_for(state.params, len(label)),
            state.params,
            fold(keys, ROLLOUT),
            label < 0,
            epsilon=epsilon,
            temperature=temperature,
        )
        reward = env.log_reward(end)
        extra = state.extra
        if past.size:
            ring: Ring = extra["replay"]
            extra = {"replay": put(ring, {"actions": actions, "log_rewards": reward})}
            actions = mix(
                ring, actions, fold(keys, REPLAY), share=past.share, priority=past.priority
            )
        metrics = {"log_reward": reward.mean()}
        return state.replace(extra=extra), {**batch, "actions": actions}, metrics

    return prepare


MEANINGS: dict[str, tuple[str | None, str]] = {
    **exact.MEANINGS,
    "elbo": ("higher", "A lower bound on ln Z, the mean over the model's trajectories, in nats."),
    "log_z_estimate": ("higher", "A tighter lower bound on ln Z, by importance sampling, in nats."),
    "log_reward": ("higher", "The mean logarithm of the samples' rewards, in nats."),
    "log_z_error": ("lower", "How far the ln Z that was learned is from the true one, in nats."),
    "log_z": (None, "The logarithm of the sum of all rewards as the model learned it, in nats."),
}
"""Of each of `scores_of`: which is better, and what it tells."""


def scores_of(flows: Flows, samples: int) -> Callable[[PyTree, jax.Array], dict[str, Any]]:
    """scores(params, key): distances to the target, exact where the environment is enumerable.

    Else sampled: elbo, the mean of ln R + ln P_B - ln P_F, and log_z_estimate, the ln of the mean
    of its exponential (a lower bound in expectation too), over so many trajectories.
    """
    env, heads = flows.env, flows.heads

    def enumerated(params: PyTree) -> dict[str, jax.Array]:
        tables = exact.graph(env)

        @jax.jit
        def measure(params: PyTree) -> dict[str, jax.Array]:
            out = heads(params, jnp.asarray(tables.states))
            return exact.scores(tables, out.log_forward, out.log_backward)

        return measure(params)

    @jax.jit
    def estimated(params: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, samples)
        actions, end = rollout(env, heads, params, keys, jnp.zeros(len(keys), bool))
        path = walk(env, heads, params, actions, keys)
        weight = (path.reward + path.backward - path.forward).sum(1)
        return {
            "elbo": weight.mean(),
            "log_z_estimate": jax.nn.logsumexp(weight) - jnp.log(float(len(keys))),
            "log_reward": env.log_reward(end).mean(),
        }

    def scores(params: PyTree, key: jax.Array) -> dict[str, Any]:
        results = dict(enumerated(params) if env.enumerable else estimated(params, key))
        log_z = flows.log_z(params)
        if env.log_z is not None:
            results["log_z_error"] = jnp.abs(log_z - env.log_z)
        return {**results, "log_z": log_z}

    return scores
