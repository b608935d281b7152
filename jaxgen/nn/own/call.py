"""How a network of one's own is called, read from a text: "x, 1000 * t, y, train=train"."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxgen.errors import invalid

Words = Mapping[str, Any]
Argument = Callable[[Words], Any]

INPUTS = ("x", "t", "y")
"""What a denoiser is called with. Networks of two inputs have x and y, of one x alone."""

WORDS = (*INPUTS, "train", "key")
"""What a call may name besides the conditions."""

FLAGS: dict[str, Argument] = {
    **dict.fromkeys(("train", "training", "is_training"), lambda told: told["train"]),
    **dict.fromkeys(("deterministic", "inference"), lambda told: not told["train"]),
    **dict.fromkeys(("key", "rng"), lambda told: told["key"]),
}
"""Parameters that a network is given by their names where it has them, and what they are given."""

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a call: functions of what its words stand for; and by what t is multiplied.

    names: the words that it names.
    """

    positional: tuple[Argument, ...]
    named: Mapping[str, Argument]
    names: frozenset[str]
    time_scale: float

    def arguments(self, called: Callable[..., Any], told: Words) -> tuple[list[Any], Words]:
        """What `called` is given, by position and by name; and of `FLAGS` what it has."""
        parameters = inspect.signature(called)
        args = [of(told) for of in self.positional]
        named = {name: of(told) for name, of in self.named.items()}
        bound = parameters.bind_partial(*args, **named).arguments
        flags = {n: of(told) for n, of in FLAGS.items() if n in parameters.parameters}
        return args, named | {n: flag for n, flag in flags.items() if n not in bound}


@functools.cache
def read_call(text: str, words: Collection[str] = WORDS) -> Call:
    """The call with the arguments `text`. Raises UsageError unless they are of these words.

    >>> read_call("x, 1000 * t, y, deterministic=not train").time_scale
    1000.0
    """
    with contextlib.suppress(SyntaxError):
        call = ast.parse(f"f({text})", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            found = [*call.args, *(k.value for k in call.keywords)]
            read = [_argument(node, words) for node in found]
            names = [k.arg for k in call.keywords if k.arg is not None]
            if None not in read and len(names) == len(call.keywords):
                values = [of for of in read if of is not None]
                times = [of for of, node in zip(values, found, strict=True) if "t" in _names(node)]
                count = len(call.args)
                return Call(
                    tuple(values[:count]),
                    dict(zip(names, values[count:], strict=True)),
                    frozenset().union(*map(_names, found)),
                    next((of({"t": 1.0}) - of({"t": 0.0}) for of in times), 1.0),
                )
    allowed = f"{', '.join(words)}, `not train`, arithmetic of t (1000 * t), plain values"
    raise invalid("config.model.call", text, allowed, 'As it is by default: "x, t, y".')


def _argument(node: ast.expr, words: Collection[str]) -> Argument | None:
    """An argument as a function of the words; None where it cannot be read."""
    match node:
        case ast.Name(word):
            return (lambda told: told[word]) if word in words else None
        case ast.UnaryOp(ast.Not(), ast.Name("train")):
            return lambda told: not told["train"]
        case ast.BinOp() if "t" in words:
            return _arithmetic(node)
    with contextlib.suppress(ValueError):
        plain = ast.literal_eval(node)
        return lambda told: plain
    return None


def _arithmetic(node: ast.expr) -> Argument | None:
    """Sums, differences, products and quotients of t and numbers."""
    match node:
        case ast.Name("t"):
            return lambda told: told["t"]
        case ast.Constant(int() | float() as number):
            return lambda told: number
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            of, a, b = OPERATORS[type(op)], _arithmetic(left), _arithmetic(right)
            return None if a is None or b is None else lambda told: of(a(told), b(told))
    return None


def _names(node: ast.expr) -> frozenset[str]:
    return frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
