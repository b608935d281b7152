"""Flax NNX modules as networks of this room."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.nn.own.base import Case, Own
from jaxgen.nn.own.trees import filled, parameters


class NNX(Own):
    """A Flax NNX module, made anew for each program, in its mode for training or evaluation.

    In training each of its random streams has a key of its own, whatever its name.
    """

    @staticmethod
    def fresh(case: Case, key: jax.Array) -> dict[str, Any]:
        """Its parameters and constants."""
        return parameters(_made(case, nnx.Rngs(key)))

    @staticmethod
    def run(case: Case, params: dict[str, Any]) -> Any:
        """The module with these parameters and its streams at their beginning."""
        network = filled(_made(case, nnx.Rngs(0)), params)
        streams = [s for _, s in nnx.iter_graph(network) if isinstance(s, nnx.RngStream)]
        root = jax.random.key(0) if case.key is None else case.key
        for number, stream in enumerate(streams):
            key, shape = jax.random.fold_in(root, number), stream.key.shape
            # A stream of stacked layers has a key for each.
            stream.key.set_value(jax.random.split(key, shape) if shape else key)
            stream.count.set_value(jnp.zeros(shape, jnp.uint32))
        network.train() if case.train else network.eval()
        args, named = case.arguments(network.__call__)
        return network(*args, **named)


def _made(case: Case, rngs: nnx.Rngs) -> Any:
    """The module; where its parameters lie is the run's to say, not their annotations'."""
    with nnx.use_eager_sharding(False):
        return case.make(nnx.Module, rngs=rngs)
