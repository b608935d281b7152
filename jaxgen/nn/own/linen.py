"""Flax Linen modules as networks of this room."""

from __future__ import annotations

from typing import Any

import flax.core
import flax.linen as nn
import flax.traverse_util
import jax

from jaxgen.nn.own.base import Case, Own
from jaxgen.nn.own.trees import parameters, refuse


class Linen(Own):
    """A Flax Linen module. Streams of any name draw in training, each from a key of its own."""

    @staticmethod
    def fresh(case: Case, key: jax.Array) -> dict[str, Any]:
        """The module's own `init`, whose only collection is to be its parameters."""
        network = case.make(nn.Module)
        args, named = case.arguments(network.__call__)
        variables = nn.meta.unbox(flax.core.unfreeze(network.init(key, *args, **named)))
        params = variables.pop("params", {})
        refuse(".".join(path) for path in flax.traverse_util.flatten_dict(variables))
        return parameters(params)

    @staticmethod
    def run(case: Case, params: dict[str, Any]) -> Any:
        """The module's `apply`; what has no stream of its own draws from "params", in turn."""
        network, rngs = case.make(nn.Module), None
        if case.key is not None:
            rngs = dict(zip(("dropout", "params"), jax.random.split(case.key), strict=True))
        args, named = case.arguments(network.__call__)
        return network.apply({"params": params}, *args, rngs=rngs, **named)
