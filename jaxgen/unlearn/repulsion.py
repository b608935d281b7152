"""Repulsion: training on, away from the parameters of a model that has learnt what is unwanted.

Tiwary et al., "Adapt then Unlearn" (2025). First the trained model is adapted to a few examples of
what it is to unlearn (a run with `start` and nothing else); then, from where it was, it is trained
on other examples with a penalty on how near its parameters are to the adapted ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid, unknown
from jaxgen.method import (
    Batch,
    Learner,
    Method,
    Spec,
    frozen_with,
    retrained,
    teacher_of,
    training_of,
)

PyTree = Any
KINDS: Mapping[str, Callable[[jax.Array, float], jax.Array]] = {
    "inverse": lambda square, a: 1 / square,
    "negative": lambda square, a: -square,
    "exponential": lambda square, a: jnp.exp(-a * square),
}
"""The paper's three penalties on a squared distance: IL2, NL2 and EL2."""


def repulsion(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    kind: Literal["inverse", "negative", "exponential"] = "exponential",
    weight: float = 1.0,
    a: float = 1e-3,
    group: str = "generator",
    adapted: str = "adapted",
) -> Method:
    """Add weight R(d^2), d the distance of the parameters `group` from those of networks[adapted].

    R is 1 / d^2, -d^2 (which has no lowest value) or exp(-a d^2). For every family: the group is
    "generator" of a GAN, "net" of most. Start from the model as it was (`config.start`), on data
    without what it is to unlearn. Raises UsageError: no such network, a group that no learner
    trains, or that is not the network's.
    """
    option = "unlearn.repulsion"
    training, other = training_of(method, option), teacher_of(networks, adapted, option)
    if kind not in KINDS:
        raise unknown(f"{option}.kind", kind, KINDS)
    if not (weight > 0 and a > 0):
        raise invalid(option, (weight, a), "weight > 0 and a > 0")
    ours = jax.eval_shape(method.init, jax.random.key(0)).params
    trained = {n: it.groups(it.trained(ours)) for n, it in training.learners.items()}
    if not any(group in groups for groups in trained.values()):
        raise unknown(f"{option}.group", group, {g for groups in trained.values() for g in groups})

    def same() -> None:
        theirs = jax.eval_shape(other.method.init, jax.random.key(0)).params
        if group not in theirs or _shapes(theirs[group]) != _shapes(ours[group]):
            allowed = f"a run of the same {group}"
            raise invalid(f"config.networks.{adapted}", f"a run of another {group}", allowed)

    def repelled(learner: Learner) -> Learner:
        def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
            value, (metrics, extra) = learner.loss(params, batch, key, extra)
            off = optax.tree.sub(params[group], params["frozen"][adapted][group])
            square = optax.tree.norm(off, squared=True)
            found = {"distance": jnp.sqrt(square), "repulsion": KINDS[kind](square, a)}
            return value + weight * found["repulsion"], ({**metrics, **found}, extra)

        return dataclasses.replace(learner, loss=loss)

    learners = {
        name: repelled(it) if group in trained[name] else it
        for name, it in training.learners.items()
    }
    frozen = frozen_with(method, spec, networks, adapted)
    made = retrained(method, (same,), learners=learners, frozen=frozen)
    return dataclasses.replace(made, train_flops=None)


def _shapes(tree: PyTree) -> Any:
    """Names and shapes."""
    return jax.tree.structure(tree), [a.shape for a in jax.tree.leaves(tree)]
