"""`gflownet`: GFlowNets as a Method, from an environment, a loss and a network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import part
from jaxgen.data.environment import Environment
from jaxgen.errors import invalid
from jaxgen.families.gflownet import exact, replay
from jaxgen.families.gflownet.losses import Loss
from jaxgen.families.gflownet.walk import Heads, NetworkHeads, rollout, tabled, walk
from jaxgen.method import (
    Averages,
    Batch,
    Method,
    Metrics,
    Sampler,
    Spec,
    TrainState,
    example_keys,
    fold,
    method_of,
    single,
)
from jaxgen.method.ring import Ring, put

PyTree = Any
LOSSES = "jaxgen.families.gflownet.losses"


def gflownet(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    loss: Any = "trajectory_balance",
    backward: str = "uniform",
    forward_looking: bool = False,
    log_z_rate: float = 100.0,
    epsilon: float = 0.0,
    temperature: float = 1.0,
    truncate: int = 0,
    replay_size: int = 0,
    replay_share: float = 0.5,
    replay_priority: float = 0.0,
    estimate_samples: int = 4096,
    accumulate: int = 1,
) -> Method:
    """Learn to build samples with probability in proportion to an environment's reward.

    spec: its target is a `jaxgen.data.environment.Environment`. model: a Flax module(features) ->
    [..., outputs] with a field `outputs` (`jaxgen.nn.policy.Policy`). loss: a name or section in
    `families.gflownet.losses`. backward: "uniform" over parents, or "learned". forward_looking:
    flows are the exponential of the potential so far times a learned rest (Pan et al. 2023).
    log_z_rate: the optimizer's steps on ln Z are so many times larger than on the network (Malkin
    et al. 2022): params["log_z"] is ln Z divided by it. epsilon, temperature: exploration in
    training. truncate: only so many transitions in a row of each trajectory are seen (0: all).
    replay_size: trajectories kept (0: none), of which a batch takes `replay_share`, drawn by
    R^replay_priority. estimate_samples: trajectories for the scores of an environment that cannot
    be enumerated.

    A batch's size is the number of trajectories of a step. Parameters are {"net": ..., "log_z": ()
    where the loss has no flows}. Raises UsageError for values out of range, a source with examples,
    and forward_looking where there is no flow to look from.
    """
    env = spec.target
    if not isinstance(env, Environment):
        raise invalid(
            "config.data.source", "a source with examples", "an environment (hypergrid, sets, ...)"
        )
    chosen: Loss = part(loss, LOSSES, "method.loss")
    if backward not in ("uniform", "learned"):
        raise invalid("method.backward", backward, "'uniform', 'learned'")
    if forward_looking and chosen.flow != "head":
        raise invalid(
            "method.forward_looking",
            True,
            "False for this loss; True for detailed_balance and subtrajectory_balance",
        )
    for name, value, low, high in (
        ("epsilon", epsilon, 0.0, 1.0),
        ("replay_share", replay_share, 0.0, 1.0),
    ):
        if not low <= value <= high:
            raise invalid(f"method.{name}", value, f"{low:g} to {high:g}")
    for name, positive in (("log_z_rate", log_z_rate), ("temperature", temperature)):
        if not positive > 0:
            raise invalid(f"method.{name}", positive, "a number > 0")
    for name, least, number in (
        ("truncate", 0, truncate),
        ("replay_size", 0, replay_size),
        ("estimate_samples", 1, estimate_samples),
    ):
        if number < least:
            raise invalid(f"method.{name}", number, f"an integer >= {least}")
    if replay_priority < 0:
        raise invalid("method.replay_priority", replay_priority, "a number >= 0")
    if not hasattr(model, "outputs"):
        raise invalid(
            "config.model", type(model).__name__, "a network with `outputs` (policy.Policy)"
        )
    model = model.clone(outputs=env.actions + env.back_actions + 1)
    heads = NetworkHeads(
        env,
        model,
        learned_backward=backward == "learned",
        flow="edges" if chosen.flow == "edges" else "head",
        forward_looking=forward_looking,
    )

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        features = env.features(jnp.asarray(env.root())[None])
        params: dict[str, Any] = {"net": model.init(key, features)["params"]}
        if chosen.flow == "none":
            params["log_z"] = jnp.zeros(())
        return params, {"replay": replay.empty(replay_size, env.steps)} if replay_size else ()

    def heads_for(params: PyTree, batch_size: int) -> Heads:
        """The quicker of two ways to the same numbers, for a batch of trajectories."""
        if env.enumerable and env.count <= batch_size * env.steps:
            return tabled(env, heads, params)
        return heads

    def log_z(params: PyTree) -> jax.Array:
        if chosen.flow == "none":
            return log_z_rate * params["log_z"]
        return heads(params, jnp.asarray(env.root())[None]).flow[0]

    def objective(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        z = log_z(params)
        keys = fold(example_keys(key, batch), 1)
        own = heads_for(params, len(keys))
        path = walk(env, own, params, batch["actions"], keys, log_z=z, truncate=truncate)
        metrics = {"log_z": z, "steps": path.valid.sum(1).astype(jnp.float32).mean()}
        return chosen.of(path).mean(), (metrics, extra)

    def walked(
        state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, Batch, Metrics]:
        """Trajectories of the current policy, some of them replaced by replayed ones."""
        label, keys = batch["label"], example_keys(key, batch)
        # No label is negative; said of the batch, so that trajectories lie on devices as it does.
        actions, end = rollout(
            env,
            heads_for(state.params, len(label)),
            state.params,
            fold(keys, 0),
            label < 0,
            epsilon=epsilon,
            temperature=temperature,
        )
        reward = env.log_reward(end)
        extra = state.extra
        if replay_size:
            past: Ring = extra["replay"]
            extra = {"replay": put(past, {"actions": actions, "log_rewards": reward})}
            actions = replay.mix(
                past, actions, fold(keys, 2), share=replay_share, priority=replay_priority
            )
        metrics = {"log_reward": reward.mean()}
        return state.replace(extra=extra), {**batch, "actions": actions}, metrics

    def sampler(*, temperature: float = 1.0) -> Sampler:
        """Samples by the forward policy. temperature: P_F to the power 1 / temperature.

        Raises UsageError unless temperature > 0.
        """
        if not temperature > 0:
            raise invalid("sample.temperature", temperature, "a number > 0")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            own = heads_for(params, len(labels))
            _, end = rollout(env, own, params, keys, labels < 0, temperature=temperature)
            return env.sample(end)

        return Sampler(fn, calls=float(env.steps), steps=env.steps)

    def scores(params: PyTree, key: jax.Array) -> dict[str, Any]:
        """Distances to the target: exact where the environment can be enumerated, else sampled.

        Sampled: elbo, the mean of ln R + ln P_B - ln P_F, and log_z_estimate, the ln of the mean of
        its exponential (a lower bound in expectation too), over `estimate_samples` trajectories.
        """
        found: dict[str, Any] = {}
        if env.enumerable:
            tables = exact.graph(env)

            @jax.jit
            def measure(params: PyTree) -> dict[str, jax.Array]:
                out = heads(params, jnp.asarray(tables.states))
                return exact.scores(tables, out.log_forward, out.log_backward)

            found |= measure(params)
        else:
            found |= _estimates(params, key)
        if env.log_z is not None:
            found["log_z_error"] = jnp.abs(log_z(params) - env.log_z)
        return {**found, "log_z": log_z(params)}

    @jax.jit
    def _estimates(params: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, estimate_samples)
        actions, end = rollout(env, heads, params, keys, jnp.zeros(len(keys), bool))
        path = walk(env, heads, params, actions, keys)
        weight = (path.reward + path.backward - path.forward).sum(1)
        return {
            "elbo": weight.mean(),
            "log_z_estimate": jax.nn.logsumexp(weight) - jnp.log(float(len(keys))),
            "log_reward": env.log_reward(end).mean(),
        }

    training = single(objective, fresh, optimizer, averages, accumulate=accumulate, prepare=walked)
    return method_of(spec, training, sampler=sampler, scores=scores)


def fl_gflownet(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    loss: Any = "detailed_balance",
    backward: str = "uniform",
    epsilon: float = 0.0,
    temperature: float = 1.0,
    truncate: int = 0,
    replay_size: int = 0,
    replay_share: float = 0.5,
    replay_priority: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """The forward-looking GFlowNet (Pan et al. 2023): `gflownet` with forward_looking=True.

    With loss="subtrajectory_balance" it is FL-SubTB. Options as `gflownet`.
    """
    return gflownet(
        spec,
        model,
        optimizer,
        averages,
        loss=loss,
        backward=backward,
        forward_looking=True,
        epsilon=epsilon,
        temperature=temperature,
        truncate=truncate,
        replay_size=replay_size,
        replay_share=replay_share,
        replay_priority=replay_priority,
        accumulate=accumulate,
    )
