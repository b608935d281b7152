"""Concepts by codes: the same code makes the same subject, whatever the class it is asked for.

Hsin-Ying Lee et al., "Consistent Subject Generation via Contrastive Instantiated Concepts" (2025):
a mapping network from latent codes to embeddings, trained alone, by triplets of denoised images.
Here the mapping is the condition "code" of the network (`jaxgen.nn.conditions`), which is added to
the label's embedding and adds nothing at first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Spec,
    alone,
    denoiser_factory,
    encoder_of,
    on_params,
    only_learner,
    retrained,
    training_of,
)
from jaxgen.method.streams import NOISE, OTHER, TIME, example_keys, fold, normal

PyTree = Any
CODE = "code"
STREAM = 2**32 - 21
"""Of a step's key: its codes, times and noise are not the method's own."""


def concepts(
    method: Method,
    *,
    spec: Spec,
    encoder: Any = "flat",
    margin: float = 1.0,
    keep: float = 1.0,
    low: float = 0.5,
) -> Method:
    """Train what the model makes of its condition "code", the group "mapping", and nothing else.

    Neighbours in the batch are told one code; the triplet is a's features, its neighbour's, and
    those of the example after them: max(0, |a - p|^2 - |a - n|^2 + margin), means over features, of
    x0 as said at times from `low` to 1. keep: the weight of the method's own loss, told codes at
    random. encoder: features, a section of `frozen.encoders`, of what is to be the same.

    Give the trained model by `config.start` and declare model.conditions=(("code", "vector", D),).
    Codes are standard normal; draw with {"label": labels, "code": codes}. Raises UsageError for a
    model that is not told codes, and for values out of range.
    """
    option = "tune.concepts"
    base, training, of = (
        only_learner(method, option), training_of(method, option), denoiser_factory(method)
    )  # fmt: skip
    features = encoder_of(part(encoder, ROOMS["encoder"], f"{option}.encoder"))
    if margin <= 0 or keep < 0 or not 0 <= low < 1:
        raise invalid(option, (margin, keep, low), "margin > 0, keep >= 0, 0 <= low < 1")
    asked = None if of is None else of(guidance=())(None, None)
    network = getattr(asked, "network", None)
    declared = {n: size for n, kind, *size in getattr(network and network.model, "conditions", ())}
    if of is None or network is None or CODE not in declared:
        raise invalid("config.model.conditions", tuple(declared), '(("code", "vector", D),)')
    denoiser, (size,) = of, declared[CODE]

    def merged(params: PyTree) -> PyTree:
        rest = {k: v for k, v in params.items() if k != "mapping"}
        told = {**params["net"].get("conditions", {}), CODE: params["mapping"]}
        return {**rest, "net": {**params["net"], "conditions": told}}

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        told = dict(params["net"]["conditions"])
        mapping = told.pop(CODE)
        net = {k: v for k, v in params["net"].items() if k != "conditions"}
        net |= {"conditions": told} if told else {}
        return {**params, "net": net, "mapping": mapping}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        params = merged(params)
        keys = example_keys(jax.random.fold_in(key, STREAM), batch)
        drawn = normal(fold(keys, OTHER), (size,))
        first = jnp.arange(len(keys)) // 2 * 2
        codes = drawn[first]  # neighbours have one code
        t = low + (1 - low) * jax.vmap(jax.random.uniform)(fold(keys, TIME))
        x = network.path.mix(batch["image"], normal(fold(keys, NOISE), spec.shape), t)
        told = {"label": batch["label"], CODE: codes}
        f = features(denoiser(guidance=())(params, told)(keys, x, t, ())[0].x0)
        f = f.reshape(len(keys), -1)
        partner = jnp.arange(len(keys)) ^ 1
        near, far = (((f - f[n]) ** 2).mean(1) for n in (partner, (first + 2) % len(keys)))
        triplet = jnp.maximum(near - far + margin, 0).mean()
        own, (metrics, extra) = base.loss(params, {**batch, CODE: drawn}, key, extra)
        return triplet + keep * own, ({**metrics, "triplet": triplet}, extra)

    made = retrained(method, fresh=fresh, **alone(base, loss, "mapping", ()))
    return on_params(dataclasses.replace(made, separable=False, train_flops=None), merged)
