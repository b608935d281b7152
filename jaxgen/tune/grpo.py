"""Tuning by a reward: the model's own samples, made likelier the more they beat others of a group.

Group relative policy optimization (Shao et al., "DeepSeekMath", 2024, eq. 3) for every sampler that
can say the probabilities of its draws: tokens of autoregressive models (AR-GRPO, Yuan et al. 2025),
steps of masked ones, Gaussian steps of diffusion (DDPO, Black et al. 2023; Flow-GRPO, Liu et al.
2025). What the model is drawn to is known: `grpo` says it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.config import Later
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    TrainState,
    frozen_with,
    only_learner,
    retrained,
    teacher_of,
)
from jaxgen.method.streams import example_keys
from jaxgen.tune.policy import policy
from jaxgen.tune.rewards import scored

PyTree = Any
ROLLOUTS = 2**32 - 10
"""Of a step's key: what its samples are drawn from."""


def grpo(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    reward: Later | Any,
    group: int = 8,
    beta: float = 0.04,
    clip: float = 0.2,
    steps: int = 1,
    normalise: bool = True,
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """Draw groups of samples of one label, and raise the probability of those above their mean.

    reward: a section that builds fn(x [B, *shape], labels [B]) -> [B] (`jaxgen.frozen.rewards`), or
    such a function, of what the sampler makes; samples whose reward is not finite are left out, and
    the metric `unscored` is their share. group: samples of a label; of each so many rows of a batch
    the first gives the label, and its data are not used. beta: weight of KL(p, p_ref), p_ref being
    networks[teacher]: the model as it was; start from it too (`config.start`). clip: PPO's, of the
    ratio p / p_old, which is 1 but for steps > 1: updates on the samples of one draw, each on its
    share of them. sample: options of the sampler (a `sample` section), as the model is tuned.

    normalise: advantages (r - mean) / std, as GRPO's; the model is then drawn to p in proportion to
    p_ref exp(r / (beta std)), std being the rewards' under p itself, label by label, for large
    groups; where beta is so small that there is no such law, to the best samples alone. False: r
    less the mean of the others (Liu et al., "Understanding R1-Zero-Like Training", 2025), and p in
    proportion to p_ref exp(r / beta), for any group.

    The KL is k3's, exp(-l) - 1 + l with l = ln p / p_ref of a draw, times the ratio p / p_old, and
    of a draw and those after it, which depend on it: k3 by itself has the gradient of KL(p_ref, p),
    and neither would lead to the laws above. A step of a sampler that draws nothing, as diffusion's
    last, has no probability and is not tuned as such.

    Raises UsageError: no such network; values out of range; a sampler whose draws' probabilities
    are not known (what allows them is said); a reward of another shape.
    """
    option = "tune.grpo"
    base, other = only_learner(method, option), teacher_of(networks, teacher, option)
    if not (group >= 2 and beta >= 0 and clip > 0 and steps >= 1):
        allowed = "group >= 2, beta >= 0, clip > 0, steps >= 1"
        raise invalid(option, (group, beta, clip, steps), allowed)
    judged = scored(reward, spec, f"{option}.reward")
    drawn = policy(method, sample or {}, f"{option}.sample")
    held = functools.cache(lambda: policy(other.method, sample or {}, f"{option}.sample"))

    def prepare(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        size = batch["label"].shape[0]
        if size % group:
            raise invalid("config.data.batch_size", size, f"a multiple of groups of {group}")
        labels = jnp.repeat(batch["label"][::group], group)
        keys = example_keys(jax.random.fold_in(key, ROLLOUTS), batch)
        params = {**state.params, "frozen": frozen}
        x, draws = drawn.rollout(params, keys, labels)
        rewards = judged()(x, labels)
        own, finite = advantages(rewards.reshape(-1, group), normalise)
        made = {
            **batch,
            "label": labels,
            "draws": draws,
            "old": drawn.log_probs(params, draws, labels),
            "reference": held().log_probs(frozen[teacher], draws, labels),
            "advantage": own.reshape(-1),
        }
        mean = jnp.where(finite, rewards.reshape(-1, group), 0).sum() / jnp.maximum(finite.sum(), 1)
        return state, made, {"reward": mean, "unscored": 1 - finite.mean()}

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        log = drawn.log_probs(params, batch["draws"], batch["label"])
        value = surrogate(
            log, batch["old"], batch["reference"], batch["advantage"], clip=clip, beta=beta
        )
        excess = log - batch["reference"]
        divergence = (jnp.exp(-excess) - 1 + excess).sum(1).mean()
        return value.mean(), ({"kl": divergence}, extra)

    learners = {"net": dataclasses.replace(base, loss=loss, steps=steps)}
    frozen = frozen_with(method, spec, networks, teacher)
    made = retrained(method, (judged, held), learners=learners, frozen=frozen, prepare=prepare)
    return dataclasses.replace(made, separable=False, train_flops=None)


def advantages(rewards: jax.Array, normalise: bool) -> tuple[jax.Array, jax.Array]:
    """(advantages, which rewards are finite), both as rewards [groups, group].

    Exactly 0 where all of a group have the same reward, and for what is not finite.
    """
    finite = jnp.isfinite(rewards)
    count = jnp.maximum(finite.sum(1, keepdims=True), 1)
    most = jnp.where(finite, rewards, -jnp.inf).max(1, keepdims=True)
    rewards = jnp.where(finite, rewards - most, 0.0)  # so that equal ones are 0 to the bit
    off = jnp.where(finite, rewards - rewards.sum(1, keepdims=True) / count, 0.0)
    if not normalise:
        return off * count / jnp.maximum(count - 1, 1), finite
    std = jnp.sqrt((off**2).sum(1, keepdims=True) / count)
    return off / jnp.where(std > 0, std, 1.0), finite


def surrogate(
    log: jax.Array,
    old: jax.Array,
    reference: jax.Array,
    advantage: jax.Array,
    *,
    clip: float,
    beta: float,
) -> jax.Array:
    """What is minimised [B], of ln p, ln p_old and ln p_ref [B, N] of draws and advantages [B].

    A mean over draws of -min(ratio A, clipped ratio A) + beta KL.
    """
    ratio, own = jnp.exp(log - old), advantage[:, None]
    gain = jnp.minimum(ratio * own, jnp.clip(ratio, 1 - clip, 1 + clip) * own)
    excess = jax.lax.stop_gradient(log - reference)
    # Of this draw and those after it: the gradient of ratio k3, whose exp(-l) ratio is constant.
    to_go = jnp.cumsum(excess[:, ::-1], axis=1)[:, ::-1]
    return (beta * ratio * to_go - gain).mean(1)
