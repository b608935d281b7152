"""Training only what a pattern of names matches: an embedding, the biases, what tells the noise.

What is trained is a difference, which is added before the network is asked: the network itself
keeps its bits, averages are of the difference alone, and `sample.adapters` adds it to others.
"""

from __future__ import annotations

import re
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Batch, Method, alone, on_params, only_learner, retrained, training_of
from jaxgen.tune.changes import added
from jaxgen.tune.lora import ADDED

PyTree = Any


def only(method: Method, *, match: str) -> Method:
    """Train `params["only"]`, zeros at first, which are added to the arrays that `match` finds.

    method: any with one loss. Give the trained model by `config.start`. match: a regular expression
    of dotted names, e.g. r"\\bbias$" (Ben Zaken et al., "BitFit", 2022). Beside `tune.lora`: also
    these. Raises UsageError where nothing matches.
    """
    base, training = only_learner(method, "tune.only"), training_of(method, "tune.only")

    def summed(params: PyTree) -> PyTree:
        return added(params, "only")

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        if "only" in params:
            raise invalid("config.wrap", "tune.only twice", "once, with a `match` for all arrays")
        own = {k: v for k, v in params.items() if k not in ADDED}
        flat = trees.flatten_dict(own, sep=".")
        chosen = {n: jnp.zeros_like(w) for n, w in flat.items() if re.search(match, n)}
        if not chosen:
            allowed = f"a regular expression that matches one of {', '.join(flat)}"
            raise invalid("tune.only.match", match, allowed)
        return {**params, "only": trees.unflatten_dict(chosen, sep=".")}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        return base.loss(summed(params), batch, key, extra)

    jax.eval_shape(fresh, jax.random.key(0))
    return on_params(retrained(method, fresh=fresh, **alone(base, loss, "only", ADDED)), summed)
