"""Pairs of pure functions as networks of this room."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax

from jaxgen.nn.own.base import Case, Own
from jaxgen.nn.own.trees import filled, parameters


class Pure(Own):
    """A pair of functions: init(key), or init(key, x, t, y), and apply(params, x, t, y)."""

    @staticmethod
    def fresh(case: Case, key: jax.Array) -> dict[str, Any]:
        """What `init` gives, any tree of arrays of floats."""
        return parameters(_initial(case, key))

    @staticmethod
    def run(case: Case, params: dict[str, Any]) -> Any:
        """What `apply` gives."""
        like = jax.eval_shape(functools.partial(_initial, case), jax.random.key(0))
        args, named = case.arguments(functools.partial(case.make(tuple)[1], None))
        return case.make(tuple)[1](filled(like, params), *args, **named)


def _initial(case: Case, key: jax.Array) -> Any:
    """What a pair's init gives, with the arguments of a call where it needs them."""
    init = case.make(tuple)[0]
    try:
        inspect.signature(init).bind(key)
    except TypeError:
        quiet = dataclasses.replace(case, call=case.call.without("key"), key=None, train=False)
        args, named = quiet.arguments(functools.partial(init, None))
        return init(key, *args, **named)
    return init(key)
