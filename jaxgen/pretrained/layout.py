"""A layout of somebody's weights: a table of names, applied by one function, and what it says.

A table has for each of our arrays, by its dotted name, the names of theirs that it is made of and
how (`Row`). Tables are put together from layers (`dense`, `conv`, `norm`), under names (`within`)
and over the layers of a stack (`stacked`), and `converted` applies one. What does not fit is one
`UsageError`, which names what is missing, what is left over, and what has another shape.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util as trees
import numpy as np

from jaxgen.errors import UsageError, invalid

PyTree = Any
State = Mapping[str, np.ndarray]
"""A state dict: name -> array."""

MOST = 6
"""Names that a message lists before it counts."""


class Row(NamedTuple):
    """Where an array of ours comes from: `make` of theirs by `names`, in that order."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda a: a


Table = dict[str, Row]


@dataclasses.dataclass(frozen=True)
class Found:
    """A network's weights as they were found: their state dict, and what its config.json says.

    about: {} where nothing says anything. scheduler: of a pipeline of diffusers, or {}.
    """

    state: State
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout by name.

    what: in words. marks, never: names (regular expressions) that such a state dict has, and has
    not. config(found) -> the sections of a config that its shapes say, None where they do not say
    (`heads` of an attention). params(found, modules) -> parameters by group, for the networks of
    that config. Both raise UsageError. latents: of each channel, the mean that was taken away of
    the autoencoder's latents and what they were multiplied by then; None: one scale for all.
    """

    name: str
    what: str
    marks: tuple[str, ...]
    config: Callable[[Found], dict[str, Any]]
    params: Callable[[Found, Any], PyTree]
    never: tuple[str, ...] = ()
    latents: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def fits(self, state: Iterable[str]) -> bool:
        """Whether a state dict of these names is of this layout."""
        names = list(state)
        return not self.lacking(names) and not any(_there(p, names) for p in self.never)

    def lacking(self, state: Iterable[str]) -> list[str]:
        """The marks that names do not have."""
        names = list(state)
        return [pattern for pattern in self.marks if not _there(pattern, names)]

    def share(self, state: Iterable[str]) -> float:
        """How many of its marks names have, from 0 to 1."""
        return 1 - len(self.lacking(state)) / len(self.marks)


def _there(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def dense(ours: str, theirs: str, *, bias: bool = True) -> Table:
    """PyTorch's Linear [out, in] as a kernel [in, out]; also where it is a 1x1 convolution."""
    return _layer(ours, theirs, lambda w: w.reshape(w.shape[:2]).T, bias)


def conv(ours: str, theirs: str, *, bias: bool = True) -> Table:
    """PyTorch's Conv2d [out, in, h, w] as a kernel [h, w, in, out]."""
    return _layer(ours, theirs, lambda w: w.transpose(2, 3, 1, 0), bias)


def patches(ours: str, theirs: str) -> Table:
    """A convolution of patches as a dense layer of their pixels, (row, column, channel)."""
    return _layer(ours, theirs, lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]), True)


def norm(ours: str, theirs: str, *, bias: bool = True) -> Table:
    """A norm's scale, and bias."""
    table = {f"{ours}.scale": Row((f"{theirs}.weight",))}
    return table | ({f"{ours}.bias": Row((f"{theirs}.bias",))} if bias else {})


def rows(ours: str, theirs: str) -> Table:
    """The embedding of labels or tokens."""
    return {f"{ours}.embedding": Row((f"{theirs}.weight",))}


def _layer(ours: str, theirs: str, make: Callable[..., np.ndarray], bias: bool) -> Table:
    table = {f"{ours}.kernel": Row((f"{theirs}.weight",), make)}
    return table | ({f"{ours}.bias": Row((f"{theirs}.bias",))} if bias else {})


def heads_joined(ours: str, theirs: Sequence[str], heads: int, *, bias: bool = True) -> Table:
    """Queries, keys and values, of three layers or of one, as our layer that goes head by head."""

    def cut(arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        return list(arrays) if len(arrays) == 3 else np.split(arrays[0], 3, axis=0)

    def kernel(*arrays: np.ndarray) -> np.ndarray:
        return by_head([a.T for a in cut(arrays)], heads)

    def flat(*arrays: np.ndarray) -> np.ndarray:
        return by_head(cut(arrays), heads)

    table = {f"{ours}.kernel": Row(tuple(f"{n}.weight" for n in theirs), kernel)}
    return table | ({f"{ours}.bias": Row(tuple(f"{n}.bias" for n in theirs), flat)} if bias else {})


def by_head(layers: list[np.ndarray], heads: int) -> np.ndarray:
    """Queries', keys' and values' columns [..., heads * D] as one [..., heads * 3 * D]."""
    cut = [layer.reshape(*layer.shape[:-1], heads, -1) for layer in layers]
    return np.stack(cut, -2).reshape(*layers[0].shape[:-1], -1)


def within(ours: str, theirs: str, table: Table) -> Table:
    """A table with its names under a prefix each ("": none)."""
    return {
        f"{ours}{'.' * bool(ours)}{name}": Row(
            tuple(f"{theirs}{'.' * bool(theirs)}{n}" for n in row.names), row.make
        )
        for name, row in table.items()
    }


def stacked(ours: str, theirs: Sequence[str], table: Table) -> Table:
    """One layer's table for layers under the prefixes `theirs`, whose arrays are stacked."""

    def every(row: Row) -> Row:
        names = tuple(f"{prefix}.{name}" for prefix in theirs for name in row.names)
        size = len(row.names)

        def make(*arrays: np.ndarray) -> np.ndarray:
            cut = [arrays[i : i + size] for i in range(0, len(arrays), size)]
            return np.stack([row.make(*each) for each in cut])

        return Row(names, make)

    return {f"{ours}.{name}": every(row) for name, row in table.items()}


def converted(state: State, table: Table, what: str, *, beside: Sequence[str] = ()) -> PyTree:
    """Parameters (float32) of a state dict by a table.

    what: of whom, for the message. beside: regular expressions of names that nothing is made of.
    Raises UsageError that names what is missing, what is left over, and what has another shape.
    """
    wanted = {name for row in table.values() for name in row.names}
    missing = sorted(wanted - set(state))
    left = [n for n in sorted(set(state) - wanted) if not any(re.fullmatch(p, n) for p in beside)]
    if missing or left:
        raise unfit(what, missing, left)
    arrays, wrong = {}, []
    for name, row in table.items():
        given = [np.asarray(state[n], np.float32) for n in row.names]
        try:
            arrays[name] = row.make(*given)
        except ValueError:  # of a reshape, or of a stack of several shapes
            wrong.append(f"{', '.join(row.names[:2])} {given[0].shape}")
    if wrong:
        raise unfit(what, shapes=wrong)
    return trees.unflatten_dict(arrays, sep=".")


def check(params: PyTree, wanted: PyTree, what: str) -> None:
    """Raise UsageError unless parameters have our network's names and shapes."""
    given = {n: np.shape(a) for n, a in trees.flatten_dict(params, sep=".").items()}
    sizes = {n: tuple(a.shape) for n, a in trees.flatten_dict(wanted, sep=".").items()}
    trouble = [
        f"{n} {given[n]}, not {sizes[n]}" for n in sizes if n in given and given[n] != sizes[n]
    ]
    missing, left = sorted(set(sizes) - set(given)), sorted(set(given) - set(sizes))
    if trouble or missing or left:
        raise unfit(what, missing, left, trouble)


def unfit(
    what: str, missing: Sequence[str] = (), left: Sequence[str] = (), shapes: Sequence[str] = ()
) -> UsageError:
    """The error of weights that do not fit, with all that does not."""
    trouble = [
        f"{title}: {_listed(names)}"
        for title, names in (
            ("missing", missing),
            ("left over", left),
            ("of another shape", shapes),
        )
        if names
    ]
    return invalid("weights", "; ".join(trouble), f"exactly the weights of {what}")


def shape_of(state: State, name: str, what: str) -> tuple[int, ...]:
    """The shape of a weight; UsageError where there is none of that name."""
    if name not in state:
        raise unfit(what, missing=[name])
    return tuple(np.shape(state[name]))


def count(state: Iterable[str], prefix: str) -> int:
    """How many layers PREFIX.0, PREFIX.1, .. there are."""
    numbers = [
        int(found[1])
        for name in state
        if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)) is not None
    ]
    return 1 + max(numbers, default=-1)


def size_of(sizes: Mapping[str, Mapping[str, int]], **fields: int) -> dict[str, Any]:
    """A network's fields with the heads that a published size of these has; else None, unsaid."""
    for known in sizes.values():
        if all(known[name] == value for name, value in fields.items()):
            return {**fields, "heads": known["heads"]}
    return {**fields, "heads": None}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
