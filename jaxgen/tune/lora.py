"""LoRA: low-rank changes of a trained network's kernels, trained in their place.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021): W + (alpha / rank) A B, with
W frozen, A random and B zero, so that training starts at the model as it was.
"""

from __future__ import annotations

import math
import re
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    alone,
    on_params,
    only_learner,
    retrained,
    training_of,
)
from jaxgen.nn.placement import STACKED

PyTree = Any
ADDED = ("lora", "only")
"""Groups that are added to others, here and in `tune.only`."""


def lora(
    method: Method, *, rank: int = 8, alpha: float | None = None, match: str = r"\.kernel$"
) -> Method:
    """Train `params["lora"]` alone; sample, score and classify with it merged in.

    method: any with one loss. Give the trained model by `config.start`. rank: columns of A. alpha:
    the change is scaled by alpha / rank; None: rank. match: a regular expression of the dotted
    names of kernels [..., in, out] that get a change, e.g. r"\\bblocks\\.(qkv|proj)\\.kernel$".
    Averages are of the change alone. Raises UsageError where nothing matches.
    """
    base, training = only_learner(method, "tune.lora"), training_of(method, "tune.lora")
    scale = (rank if alpha is None else alpha) / rank if rank > 0 else 0.0
    if rank < 1:
        raise invalid("tune.lora.rank", rank, "rank >= 1")

    def merged(params: PyTree) -> PyTree:
        return merge(params, scale)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        if "lora" in params:
            raise invalid("config.wrap", "tune.lora twice", "once, with a `match` for all kernels")
        return {**params, "lora": adapters(key, params, rank, match)}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        return base.loss(merged(params), batch, key, extra)

    jax.eval_shape(fresh, jax.random.key(0))
    return on_params(retrained(method, fresh=fresh, **alone(base, loss, "lora", ADDED)), merged)


def adapters(key: jax.Array, params: PyTree, rank: int, match: str) -> PyTree:
    """Fresh A [..., in, rank] and B [(layers,) rank, out] of every kernel that matches."""
    flat = trees.flatten_dict(params, sep=".")
    kernels = {
        n: w
        for n, w in flat.items()
        if w.ndim > 1 + bool(STACKED.search(n)) and n.partition(".")[0] not in ADDED
    }
    chosen = [n for n in kernels if re.search(match, n)]
    if not chosen:
        allowed = f"a regular expression that matches one of {', '.join(kernels)}"
        raise invalid("tune.lora.match", match, allowed)
    changes = {}
    for number, name in enumerate(chosen):
        shape, layers = flat[name].shape, 1 if STACKED.search(name) else 0
        bound = math.prod(shape[layers:-1]) ** -0.5  # of the fan-in, as its authors' code
        a = jax.random.uniform(
            jax.random.fold_in(key, number), (*shape[:-1], rank), minval=-bound, maxval=bound
        )
        b = jnp.zeros((*shape[:layers], rank, shape[-1]))
        changes[name] = {"a": a, "b": b}
    return trees.unflatten_dict(changes, sep=".")


def merge(params: PyTree, scale: float) -> PyTree:
    """The groups without "lora", its changes times `scale` added to their kernels (-: unmerge)."""
    kernels = trees.flatten_dict({k: v for k, v in params.items() if k != "lora"}, sep="/")
    changes = trees.flatten_dict(params["lora"], sep="/")
    for name in {name.rpartition("/")[0] for name in changes}:
        a, b = changes[f"{name}/a"], changes[f"{name}/b"]
        b = b.reshape(*b.shape[:-2], *(1,) * (a.ndim - b.ndim), *b.shape[-2:])
        kernels[name] = kernels[name] + (scale * (a @ b)).astype(kernels[name].dtype)
    return trees.unflatten_dict(kernels, sep="/")
