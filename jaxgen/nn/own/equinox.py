"""Equinox modules as networks of this room."""

from __future__ import annotations

from typing import Any

import jax

from jaxgen.errors import invalid
from jaxgen.nn.own.base import Case, Own
from jaxgen.nn.own.trees import filled, parameters


class Equinox(Own):
    """An Equinox module, mapped over the batch: each example's key is of its place in the batch.

    What is trained are its JAX arrays of floats; other arrays are constants of the program.
    """

    per_example: bool = True

    @staticmethod
    def fresh(case: Case, key: jax.Array) -> dict[str, Any]:
        """Its parameters."""
        return parameters(case.make(_equinox().Module, key=key))

    @staticmethod
    def run(case: Case, params: dict[str, Any]) -> Any:
        """The module with these parameters, its layers told whether they train."""
        network = filled(case.make(_equinox().Module, key=jax.random.key(0)), params)
        network = _equinox().nn.inference_mode(network, value=not case.train)
        args, named = case.arguments(network.__call__)
        return network(*args, **named)


def _equinox() -> Any:
    try:
        import equinox
    except ImportError as error:
        fix = 'pip install "jaxgen[equinox]"'
        raise invalid("config.model.name", "own.Equinox", "what is installed", fix) from error
    return equinox
