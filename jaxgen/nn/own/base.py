"""`Own`, what the networks of all four kinds have in common, and `Case`, one call of one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen import config as configs
from jaxgen.errors import invalid, unknown
from jaxgen.mesh import BATCH, position, size
from jaxgen.nn.conditions import Condition, Conditions, none, shape_of
from jaxgen.nn.own.call import INPUTS, Call, Words, read_call


class Own(nn.Module):
    """A network made by `of`: module(x[B, ...], noise[B], condition) -> float32 [B, ..., channels].

    of: a section of a config, or a callable, that makes the network; it is told those of
    `num_classes`, `out_channels`, `shape` and `levels` (of the data; a run supplies them) that it
    has parameters for. call: the arguments that the network is called with, of the words x, t (the
    noise level), y (labels int32 in [0, num_classes], the last of which is "no label"), train, key
    (None unless it trains), the names in `conditions`, `not train`, plain values, and arithmetic
    of t (`1000 * t`); None: x, t and y. Parameters named in `call.FLAGS` are given besides.
    channels_first: images are (C, H, W) for the network. per_example: it takes one example, without
    a batch's axis. conditions: what else it can be told (`jaxgen.nn.conditions`); where it is told
    none of it that is NaN, or -1.

    Parameters are float32. Raises UsageError for a call that cannot be read, for a network without
    parameters or with state that is none, and for an output of another shape than expected.
    """

    of: Any
    call: str | None = None
    channels_first: bool = False
    per_example: bool = False
    conditions: Conditions = ()
    num_classes: int | None = None
    out_channels: int | None = None
    shape: tuple[int, ...] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        """Find what a section names, and read the call."""
        if not callable(self.of):
            given = (*self._offered, "rngs", "key")
            object.__setattr__(self, "of", factory(self.of, dict.fromkeys(given)))
        missing = {name for name, *_ in self.conditions} - self._read.names
        if missing:
            allowed = f"a call that also names {', '.join(sorted(missing))}, a condition"
            raise invalid("config.model.call", self._read.text, allowed)
        super().__post_init__()

    @property
    def time_scale(self) -> float:
        """By what the network has its time multiplied."""
        return self._read.time_scale

    @property
    def _read(self) -> Call:
        return read_call("x, t, y" if self.call is None else self.call)

    @property
    def _offered(self) -> dict[str, Any]:
        told = ("num_classes", "out_channels", "shape", "levels")
        return {name: getattr(self, name) for name in told}

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False) -> jax.Array:
        """The network at its inputs: (x, noise, condition) for a denoiser."""
        words = _words(inputs, self.conditions, self.num_classes)
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
        if key is not None and not self.per_example and size(*BATCH) > 1:
            key = jax.random.fold_in(key, position(*BATCH))
        call = read_call(", ".join(_named(inputs))) if self.call is None else self._read
        fixed = (self.of, self._offered, call, self.channels_first, self.per_example)
        if self.is_initializing():
            one = jax.tree.map(lambda a: a[0], words) if self.per_example else words
            start = self.make_rng("params")
            with _outside():
                fresh = self.fresh(Case(*fixed, one), start)
            if not fresh:
                raise invalid("config.model", "a network without parameters", "one with some")
            for name, value in fresh.items():
                self.put_variable("params", name, value)
        params, run = dict(self.variables["params"]), self.run

        def at(words: dict[str, jax.Array], key: jax.Array | None) -> Any:
            case = Case(*fixed, words, key, train)
            return case.back(run(case, params))

        with _outside():
            if self.per_example:
                at = jax.vmap(at, in_axes=(0, None if key is None else 0))
                key = None if key is None else _each(key, words["x"].shape[0])
            out = at(words, key)
        return _checked(out, words["x"], self.out_channels if len(inputs) == len(INPUTS) else None)

    @staticmethod
    def fresh(case: Case, key: jax.Array) -> dict[str, Any]:
        """First parameters, as nested dicts, from a key."""
        raise NotImplementedError

    @staticmethod
    def run(case: Case, params: dict[str, Any]) -> Any:
        """The network's output with these parameters."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of a network of one's own: how it is made, and the words that it is called with.

    Fields as `Own`'s; words: arrays by name; key: None, or what the network draws from.
    """

    of: Callable[..., Any]
    offered: Mapping[str, Any]
    call: Call
    channels_first: bool
    per_example: bool
    words: Words
    key: jax.Array | None = None
    train: bool = False

    def make(self, kind: type, **more: Any) -> Any:
        """The network. Raises UsageError where it is of another kind."""
        names, bound = configs.signature(self.of).parameters, getattr(self.of, "keywords", {})
        offered = {**self.offered, **more}
        made = self.of(**{k: v for k, v in offered.items() if k in names and k not in bound})
        fits = isinstance(made, kind)
        if fits and (kind is not tuple or len(made) == 2):
            return made
        allowed = "a pair (init, apply)" if kind is tuple else f"{kind.__module__}.{kind.__name__}"
        raise invalid("config.model.of", type(made).__name__, f"what makes {allowed}")

    def arguments(self, called: Callable[..., Any]) -> tuple[list[Any], dict[str, Any]]:
        """What a function is called with, by position and by name."""
        told = {**self.words, "key": self.key, "train": self.train}
        if self.channels_first:
            told["x"] = jnp.moveaxis(told["x"], -1, 0 if self.per_example else 1)
        return self.call.of(called, told)

    def back(self, out: Any) -> Any:
        """An output with its channels last."""
        if not self.channels_first:
            return out
        return jnp.moveaxis(out, 0 if self.per_example else 1, -1)


def adapted(section: Any, found: Callable[..., Any]) -> Any:
    """The section of a network that `found` makes; an NNX or Equinox class in the class for it."""
    if isinstance(found, type) and issubclass(found, nnx.Module):
        return {"name": "own.NNX", "of": section}
    package = sys.modules.get("equinox")
    if isinstance(found, type) and package is not None and issubclass(found, package.Module):
        return {"name": "own.Equinox", "of": section}
    return section


def factory(section: Any, given: Mapping[str, Any]) -> Callable[..., Any]:
    """What a section of a config names, with its keywords bound; `given` it is told when called."""
    room, option = configs.ROOMS["model"], "config.model.of"
    if not isinstance(section, str) and not hasattr(section, "keys"):
        raise invalid(option, section, "a name, a section with a name, or what makes a network")
    names = configs.wanted(section, room, option, given)
    made: Any = configs.partial(section, room, option, **names)
    return functools.partial(
        made.func, **{k: v for k, v in made.keywords.items() if k not in names}
    )


def _named(inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """The words for what a network is called with."""
    return {1: ("x",), 2: ("x", "y"), 3: INPUTS}[len(inputs)]


def _words(
    inputs: tuple[Any, ...], conditions: Conditions, null_label: int | None
) -> dict[str, jax.Array]:
    """The arrays [B, ...] that a call may name, from what a family calls its networks with."""
    words: dict[str, Any] = dict(zip(_named(inputs), inputs, strict=True))
    if "y" not in words:
        return words
    condition = words["y"]
    if isinstance(condition, Condition):
        if condition.change is not None:
            allowed = "a network of jaxgen.nn, whose condition's embedding is known"
            raise invalid("config.model", "a network of one's own", allowed)
        condition = condition.told
    told: dict[str, Any] = (
        dict(condition) if isinstance(condition, Mapping) else {"label": condition}
    )
    y = told.pop("label", jnp.full(words["x"].shape[0], -1))
    words["y"] = y if null_label is None else jnp.where(y < 0, null_label, y)
    for name, kind, *sizes in conditions:
        absent = none(kind, (y.shape[0], *shape_of(name, kind, *sizes)))
        words[name] = told.pop(name, absent)
    for name in told:
        raise unknown("condition", name, ["label", *(own for own, *_ in conditions)])
    return words


def _checked(out: Any, x: jax.Array, channels: int | None) -> jax.Array:
    """An output in float32; of x's shape but for its channels, unless they are None."""
    found = getattr(out, "shape", None)
    wanted = found if channels is None else (*x.shape[:-1], channels)
    if found is None or found != wanted:
        given = f"an output of {type(out).__name__ if found is None else found}"
        raise invalid("config.model", given, f"an array {wanted or ''}, for x of {x.shape}")
    return out.astype(jnp.float32)


def _each(key: jax.Array, count: int) -> jax.Array:
    """A key for each example of this device's part, of its place in the whole batch."""
    places = position(*BATCH) * count + jnp.arange(count)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """Linen modules made within belong to no other: `parent=None`, for what a factory makes."""
    stack = nn.module._context.module_stack
    stack.append(None)
    try:
        yield
    finally:
        stack.pop()
