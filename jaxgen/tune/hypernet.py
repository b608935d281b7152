"""Personalisation without fine-tuning: a network that says low-rank changes from an image.

"Finetuning-Free Personalization of Text to Image Generation via Hypernetworks" (2025): a
hypernetwork on a frozen encoder's features gives the LoRA weights of a frozen model; it is trained
end to end by the model's own loss, with a penalty on what it says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Sampler,
    Spec,
    alone,
    encoder_of,
    on_params,
    only_learner,
    retrained,
    training_of,
)
from jaxgen.tune.lora import adapters, merge

PyTree = Any
REFERENCE = "reference"
"""The condition that samples are drawn for: an image of the subject."""
FIRST = 3
"""The stream of the hypernetwork's first parameters."""


def hypernet(
    method: Method,
    *,
    spec: Spec,
    encoder: Any = "flat",
    rank: int = 1,
    match: str = r"\.kernel$",
    width: int = 64,
    penalty: float = 1e-4,
) -> Method:
    """Train `params["hyper"]` alone: a hidden layer from an image's features to all changes.

    Each example's loss is of the model with the changes that its own image asks for, plus `penalty`
    times the mean square of what is said; at first the changes are 0, as LoRA's. Draw with
    {"label": labels, "reference": images}, a model for each; labels alone are the model's own. Give
    the trained model by `config.start`. encoder: a section of `frozen.encoders`. rank, match: as
    `tune.lora`. width: of the hidden layer. Raises UsageError for values out of range, and where
    nothing matches.
    """
    option = "tune.hypernet"
    base, training = only_learner(method, option), training_of(method, option)
    features = encoder_of(part(encoder, ROOMS["encoder"], f"{option}.encoder"))
    if rank < 1 or width < 1 or penalty < 0:
        allowed = "rank >= 1, width >= 1, penalty >= 0"
        raise invalid(option, (rank, width, penalty), allowed)
    first = jax.eval_shape(training.fresh, jax.random.key(0))[0]
    like = jax.eval_shape(lambda k, p: adapters(k, p, rank, match), jax.random.key(0), first)
    size = sum(a.size for a in jax.tree.leaves(like))
    whole = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like))[1]
    zeros = nn.initializers.zeros
    network = nn.Sequential([nn.Dense(width), nn.silu, nn.Dense(size, kernel_init=zeros)])

    def own(params: PyTree) -> PyTree:
        return {k: v for k, v in params.items() if k != "hyper"}

    def said(params: PyTree, x: jax.Array) -> jax.Array:
        """All changes [B, size] for images."""
        out: Any = network.apply({"params": params["hyper"]}, features(x))
        return out

    def changed(params: PyTree, changes: jax.Array) -> PyTree:
        return merge({**own(params), "lora": whole(changes)}, 1.0)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        key = jax.random.fold_in(key, FIRST)
        found = jax.eval_shape(features, jnp.zeros((1, *spec.shape)))
        hyper = dict(network.init(key, jnp.zeros(found.shape))["params"])
        last = hyper["layers_2"]
        bias = ravel_pytree(adapters(key, params, rank, match))[0]
        return {**params, "hyper": {**hyper, "layers_2": {**last, "bias": bias}}}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        changes = said(params, batch["image"])
        shared = {"microbatch": batch["microbatch"]}
        each = {k: a for k, a in batch.items() if k != "microbatch"}

        def one(change: jax.Array, example: Batch) -> jax.Array:
            alone = {**{k: a[None] for k, a in example.items()}, **shared}
            value: jax.Array = base.loss(changed(params, change), alone, key, extra)[0]
            return value

        fit, squares = jax.vmap(one)(changes, each).mean(), (changes**2).mean()
        return fit + penalty * squares, ({"fit": fit, "squares": squares}, extra)

    made = retrained(method, fresh=fresh, **alone(base, loss, "hyper", ()))
    made = on_params(dataclasses.replace(made, train_flops=None), own)
    if method.sampler is None or made.sampler is None:
        return made
    known, plain = method.sampler, made.sampler

    @functools.wraps(known)
    def sampler(**options: Any) -> Sampler:
        inner, alone = known(**options), plain(**options)

        def fn(params: PyTree, keys: jax.Array, condition: Any) -> Any:
            told: Any = condition
            if not isinstance(condition, Mapping) or REFERENCE not in condition:
                return alone.fn(params, keys, told)
            rest = {k: a for k, a in condition.items() if k != REFERENCE}
            told = rest["label"] if set(rest) == {"label"} else rest

            def one(change: jax.Array, key: jax.Array, told: Any) -> Any:
                told = jax.tree.map(lambda a: a[None], told)
                return inner.fn(changed(params, change), key[None], told)[0]

            return jax.vmap(one)(said(params, condition[REFERENCE]), keys, told)

        return dataclasses.replace(alone, fn=fn)

    return dataclasses.replace(made, sampler=sampler)
