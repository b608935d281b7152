"""`gflownet`: GFlowNets as a Method, from an environment, a loss and a network."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from jaxgen.config import part
from jaxgen.data.environment import Environment
from jaxgen.errors import invalid
from jaxgen.families.gflownet.flows import MEANINGS, Flows, flow_loss, rollouts, scores_of
from jaxgen.families.gflownet.losses import Loss
from jaxgen.families.gflownet.replay import Replay
from jaxgen.families.gflownet.walk import NetworkHeads, rollout
from jaxgen.method import Averages, Method, Sampler, Spec, method_of, single

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
    _check_ranges(
        shares=dict(epsilon=epsilon, replay_share=replay_share),
        positive=dict(log_z_rate=log_z_rate, temperature=temperature),
        counts=dict(truncate=truncate, replay_size=replay_size),
    )
    if estimate_samples < 1:
        raise invalid("method.estimate_samples", estimate_samples, "an integer >= 1")
    if replay_priority < 0:
        raise invalid("method.replay_priority", replay_priority, "a number >= 0")
    if not hasattr(model, "outputs"):
        raise invalid(
            "config.model", type(model).__name__, "a network with `outputs` (policy.Policy)"
        )
    heads = NetworkHeads(
        env,
        model.clone(outputs=env.actions + env.back_actions + 1),
        learned_backward=backward == "learned",
        flow="edges" if chosen.flow == "edges" else "head",
        forward_looking=forward_looking,
    )
    flows = Flows(env, heads, chosen, log_z_rate)
    past = Replay(replay_size, replay_share, replay_priority)

    def sampler(*, temperature: float = 1.0) -> Sampler:
        """Samples by the forward policy. temperature: P_F to the power 1 / temperature.

        Raises UsageError unless temperature > 0.
        """
        if not temperature > 0:
            raise invalid("sample.temperature", temperature, "a number > 0")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            policy = flows.heads_for(params, len(labels))
            _, end = rollout(env, policy, params, keys, labels < 0, temperature=temperature)
            return env.sample(end)

        return Sampler(fn, calls=float(env.steps), steps=env.steps)

    training = single(
        flow_loss(flows, truncate),
        lambda key: (flows.fresh(key), past.extra(env.steps)),
        optimizer,
        averages,
        accumulate=accumulate,
        prepare=rollouts(flows, past, epsilon=epsilon, temperature=temperature),
    )
    scores = scores_of(flows, estimate_samples)
    return method_of(spec, training, sampler=sampler, scores=scores, meanings=MEANINGS)


def _check_ranges(
    shares: dict[str, float], positive: dict[str, float], counts: dict[str, int]
) -> None:
    """Refuse shares outside [0, 1], numbers that are not above 0, and counts below it."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise invalid(f"method.{name}", share, "0 to 1")
    for name, value in positive.items():
        if not value > 0:
            raise invalid(f"method.{name}", value, "a number > 0")
    for name, count in counts.items():
        if count < 0:
            raise invalid(f"method.{name}", count, "an integer >= 0")


fl_gflownet = functools.partial(gflownet, loss="detailed_balance", forward_looking=True)
fl_gflownet.__module__ = __name__
fl_gflownet.__doc__ = """The forward-looking GFlowNet (Pan et al. 2023), a preset of `gflownet`.

With loss="subtrajectory_balance" it is FL-SubTB.
"""
