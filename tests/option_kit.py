"""What a setup computes, as text: the programs that it makes, traced and not compiled.

Two setups that would compute the same have the same text. Weights are no constants of a program,
so a few kilobytes say all: every primitive, its parameters, and what arrays it was given.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data import normalise
from jaxgen.method import update_with
from jaxgen.run.setup import Setup, abstract_batch, make_sampler, sample_options

COUNT = 2
"""Samples of a traced sampler."""


def traced(fn: Callable[..., Any], *args: Any) -> str:
    """A digest of fn's program for arguments of these shapes, with its constants."""
    closed = jax.make_jaxpr(fn)(*args)
    found = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(closed)).encode())
    for constant in constants(closed):
        keyed = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        found.update(np.asarray(jax.random.key_data(constant) if keyed else constant).tobytes())
    return found.hexdigest()


def constants(value: Any) -> Iterator[Any]:
    """The arrays that a jaxpr and those within it hold."""
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        yield from value.consts
        value = value.jaxpr
    if isinstance(value, jax.extend.core.Jaxpr):
        for equation in value.eqns:
            for inner in equation.params.values():
                yield from constants(inner)
            for variable in equation.invars:
                if isinstance(variable, jax.extend.core.Literal):
                    yield np.asarray(variable.val)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from constants(inner)


def _keys() -> Any:
    return jax.random.split(jax.random.key(0), COUNT)


def program(setup: Setup, name: str) -> str:
    """The text of one of a setup's programs, "" where it has none. See `PROGRAMS`."""
    method, key = setup.method, jax.random.key(0)
    state = jax.eval_shape(method.init, key)
    images = jnp.zeros((COUNT, *setup.spec.shape), jnp.int32 if setup.spec.tokens else jnp.float32)
    labels = jnp.zeros(COUNT, jnp.int32)
    if name == "init":
        return traced(method.init, key)
    if name == "update":
        step = lambda s, b, k, f: update_with(method, s, normalise(b), k, f)
        return traced(step, state, abstract_batch(setup), key, method.frozen)
    params = {**state.params, "frozen": method.frozen}
    if name == "sampler" and method.sampler is not None:
        sampler = make_sampler(setup, sample_options(setup, {}))
        return f"{traced(sampler.fn, params, _keys(), labels)} {sampler.calls} {sampler.steps}"
    if name == "log_prob" and method.log_prob is not None:
        return traced(method.log_prob(), params, images, labels, _keys())
    if name == "label_error" and method.label_error is not None:
        draw = jnp.ones(COUNT, jnp.int32)
        error = lambda p, x, y, k, n: method.label_error(p, x, y, k, n, 4)
        return traced(error, params, images, labels, _keys(), draw)
    if name == "code" and method.encode is not None:
        code = jax.eval_shape(method.encode, params, images)
        return traced(method.encode, params, images) + traced(method.decode, params, code)
    if name == "scores" and method.scores is not None:
        # Scores go through NumPy: numbers, not a program.
        values = method.scores(jax.jit(method.init)(key).params, key)
        return repr(sorted((name, float(value)) for name, value in values.items()))
    return ""


PROGRAMS = ("update", "init", "sampler", "log_prob", "label_error", "code", "scores")


def others(hint: Any, value: Any) -> Iterator[Any]:
    """Other values that an option of this type may take, the likeliest first."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            if inner is not type(None) and inner is not typing.Any:
                yield from others(inner, value)
        return
    if typing.get_origin(hint) is typing.Literal:
        yield from (word for word in typing.get_args(hint) if word != value)
    elif hint is bool:
        yield not value
    elif hint is int:
        number = value if isinstance(value, int) else 1
        yield from (number + 1, 2 * number, number - 1, 2, 4)
    elif hint is float:
        number = value if isinstance(value, (int, float)) and np.isfinite(value) else 1.0
        yield from (0.5 * number + 0.125, 0.5 * number, number + 1.0, 0.9 * number)


def options(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (hint, default) of what a config may say to a callable."""
    target: Any = getattr(function, "func", function)
    named = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(target if inspect.isclass(target) else named)
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def brightness() -> Callable[..., Any]:
    """A reward: more of a label is brighter."""
    return lambda x, labels: (1.0 + labels) * x.reshape(len(x), -1).mean(1)


def darkness() -> Callable[..., Any]:
    """A reward: the other way."""
    return lambda x, labels: -x.reshape(len(x), -1).mean(1)


def doubled() -> Callable[..., Any]:
    """An encoder: twice the example."""
    return lambda x: 2 * x.reshape(len(x), -1)
