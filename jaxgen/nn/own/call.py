"""How a network of one's own is called, read from a text: "x, 1000 * t, y, train=train"."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.errors import invalid

Words = Mapping[str, Any]
Value = Callable[[Words], Any]

INPUTS = ("x", "t", "y")
"""What a denoiser is called with. Networks of two inputs have x and y, of one x alone."""

FLAGS: dict[str, Value] = {
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


class Argument(NamedTuple):
    """An argument: its keyword, or None by position; the words that it names; its value of them."""

    keyword: str | None
    names: frozenset[str]
    of: Value


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a call, as the text says."""

    text: str
    arguments: tuple[Argument, ...]

    @property
    def names(self) -> frozenset[str]:
        """The words that it names."""
        return frozenset().union(*(argument.names for argument in self.arguments))

    @property
    def time_scale(self) -> float:
        """By what it multiplies t; 1 where it does not name it."""
        times = [argument.of for argument in self.arguments if "t" in argument.names]
        return next((of({"t": 1.0}) - of({"t": 0.0}) for of in times), 1.0)

    def without(self, word: str) -> Call:
        """The call without arguments that name this word."""
        left = tuple(a for a in self.arguments if word not in a.names)
        return dataclasses.replace(self, arguments=left)

    def of(self, called: Callable[..., Any], told: Words) -> tuple[list[Any], dict[str, Any]]:
        """What `called` is given, by position and by name; and of `FLAGS` what it has.

        Raises UsageError where the call names words that there are not.
        """
        if not self.names <= told.keys():
            raise invalid("config.model.call", self.text, f"{', '.join(told)} {ALLOWED}", DEFAULT)
        signature = inspect.signature(called)
        args = [a.of(told) for a in self.arguments if a.keyword is None]
        named = {a.keyword: a.of(told) for a in self.arguments if a.keyword is not None}
        bound = signature.bind_partial(*args, **named).arguments
        flags = {n: of(told) for n, of in FLAGS.items() if n in signature.parameters}
        return args, named | {n: flag for n, flag in flags.items() if n not in bound}


ALLOWED = "and `not train`, arithmetic of t (1000 * t), plain values"
DEFAULT = 'As it is by default: "x, t, y".'


@functools.cache
def read_call(text: str) -> Call:
    """The call with the arguments `text`. Raises UsageError where they are anything else.

    >>> read_call("x, 1000 * t, y, deterministic=not train").time_scale
    1000.0
    """
    with contextlib.suppress(SyntaxError):
        call = ast.parse(f"f({text})", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            nodes: list[tuple[str | None, ast.expr]] = [(None, node) for node in call.args]
            nodes += [(k.arg or "**", k.value) for k in call.keywords]
            read = [(keyword, node, _value(node)) for keyword, node in nodes]
            if all(keyword != "**" and value is not None for keyword, _, value in read):
                return Call(text, tuple(Argument(k, _names(n), v) for k, n, v in read if v))
    raise invalid("config.model.call", text, f"x, t, y, train, key {ALLOWED}", DEFAULT)


def _value(node: ast.expr) -> Value | None:
    """An argument as a function of the words; None where it cannot be read."""
    match node:
        case ast.Name(word):
            return lambda told: told[word]
        case ast.UnaryOp(ast.Not(), ast.Name("train")):
            return lambda told: not told["train"]
        case ast.BinOp():
            return _arithmetic(node)
    with contextlib.suppress(ValueError):
        plain = ast.literal_eval(node)
        return lambda told: plain
    return None


def _arithmetic(node: ast.expr) -> Value | None:
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
