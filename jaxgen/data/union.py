"""Several sources as one, in proportions that are exact."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxgen import config as configs
from jaxgen.data import order
from jaxgen.data.source import Coding, Source, Target
from jaxgen.errors import invalid
from jaxgen.method.columns import Column

ROOM = "jaxgen.data"
_CHUNK = 4096


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class UnionSource(Source):
    """Sources one after another; the column `group` says which one an example is of.

    The endless stream goes by blocks of sum(shares) positions, in each of which source i has
    exactly shares[i], in an order from (seed, block). What source i gives is its own endless
    stream, so all of its examples are seen equally often, each once in its own epoch. So the
    examples at a position are a function of (seed, position), and any proportion is exact in every
    block, and in every batch that whole blocks fill.
    """

    sources: tuple[Source, ...]
    shares: tuple[int, ...]
    group: str

    @property
    def flippable(self) -> bool:
        """Where all are."""
        return all(source.flippable for source in self.sources)

    @property
    def dtype(self) -> np.dtype:
        """That of all."""
        return self.sources[0].dtype

    @property
    def coding(self) -> Coding | None:
        """That of all."""
        return self.sources[0].coding

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(source) for source in self.sources)])

    def visited(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Examples at `positions` of the stream, by the law of this class."""
        ends = np.cumsum(self.shares)
        blocks, places = np.divmod(positions, ends[-1])
        chunks, within = np.divmod(blocks, max(1, _CHUNK // int(ends[-1])))
        slots = np.empty_like(positions)
        for chunk in np.unique(chunks):
            chosen = chunks == chunk
            table = _slots(seed, int(chunk), int(ends[-1]))
            slots[chosen] = table[within[chosen], places[chosen]]
        groups = np.searchsorted(ends, slots, side="right")
        found = np.empty_like(positions)
        for i, (source, share, end) in enumerate(zip(self.sources, self.shares, ends, strict=True)):
            chosen = groups == i
            own = blocks[chosen] * share + slots[chosen] - (end - share)
            found[chosen] = self._offsets[i] + source.visited(own, seed=order.apart(seed, i))
        return found

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images of whichever source each of `indices` [n] is of."""
        return self._gathered(indices, lambda source, own, chosen: source.images(own))

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """As each of the sources draws, at the positions of the whole."""
        return self._gathered(
            indices,
            lambda source, own, chosen: source.draw(
                own, positions=positions[chosen], seed=seed, flip=flip
            ),
        )

    def column(self, name: str, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """The number of the source [n] int32 of the column `group`; else the sources' column."""
        if name == self.group:
            groups = np.searchsorted(self._offsets[1:], indices, side="right")
            return groups.astype(np.int32)
        return self._gathered(
            indices, lambda source, own, chosen: source.column(name, own, mirrored[chosen])
        )

    def _gathered(self, indices: np.ndarray, take: Any) -> np.ndarray:
        """take(source, its own indices, which rows) of every source that has some, in order."""
        groups = np.searchsorted(self._offsets[1:], indices, side="right")
        found: np.ndarray | None = None
        for i in np.unique(groups):
            chosen = groups == i
            part = take(self.sources[i], indices[chosen] - self._offsets[i], chosen)
            if found is None:
                found = np.empty((len(indices), *part.shape[1:]), part.dtype)
            found[chosen] = part
        assert found is not None
        return found


@functools.lru_cache(maxsize=8)
def _slots(seed: int, chunk: int, size: int) -> np.ndarray:
    """Permutations of `size` slots for each of a chunk's blocks: int64 [blocks, size]."""
    return order.permutations(seed, chunk, max(1, _CHUNK // size), size)


def union(
    sources: tuple[Any, ...],
    weights: tuple[float, ...] = (),
    group: str = "group",
    split: str = "train",
) -> UnionSource:
    """Examples of several sources, weights[i] of sum(weights) from source i (see `UnionSource`).

    sources: sections, such as dict(name="folder.folder", path=..., image_size=64), all opened at
    `split`. Without weights each example is seen once an epoch. group: the name of the column that
    says which source an example is of. Classes are those of the first, and matched by name. Raises
    UsageError where sources differ in shape, levels, columns, coding or classes; it prints both.
    """
    if len(sources) < 2:
        raise invalid("source.sources", f"{len(sources)} sources", "two or more")
    options = [f"source.sources[{i}]" for i in range(len(sources))]
    opened = [
        configs.build(section, ROOM, f"config.data.{option}", split=split)
        for section, option in zip(sources, options, strict=True)
    ]
    first = opened[0]
    for option, source in zip(options, opened, strict=True):
        if isinstance(source, Target):
            raise invalid(option, "a target without examples", "sources with examples")
        if group in source.columns:
            raise invalid("source.group", group, f"another name: {option} has such a column")
        given, wanted = _said(source), _said(first)
        if given != wanted:
            raise invalid(option, given, f"as {options[0]} has it: {wanted}")
    whose = f"the classes of {options[0]}"
    opened = [
        source.relabelled(first.class_names, option, whose=whose)
        for option, source in zip(options, opened, strict=True)
    ]
    return UnionSource(
        labels=np.concatenate([source.labels for source in opened]),
        shape=first.shape,
        class_names=first.class_names,
        levels=first.levels,
        tokens=first.tokens,
        columns={**first.columns, group: Column((), "int32")},
        notes=tuple(note for source in opened for note in source.notes),
        sources=tuple(opened),
        shares=_shares(weights, [len(source) for source in opened]),
        group=group,
    )


def _said(source: Source) -> dict[str, Any]:
    """What sources have to agree in, besides their classes."""
    names = ("shape", "levels", "tokens", "coding", "columns")
    found = {name: getattr(source, name) for name in names}
    # Bytes and floats of as many levels are not scaled alike.
    return {
        **found,
        "columns": dict(source.columns),
        "dtype": source.dtype.name,
    }


def _shares(weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """Weights, or sizes where there are none, as the smallest integers of their proportions."""
    if weights and (len(weights) != len(sizes) or not all(0 < w < math.inf for w in weights)):
        raise invalid("source.weights", weights, f"{len(sizes)} numbers > 0, one a source")
    parts = [Fraction(str(w)) for w in weights or sizes]
    scale = math.lcm(*(p.denominator for p in parts))
    whole = [int(p * scale) for p in parts]
    shares = tuple(n // math.gcd(*whole) for n in whole)
    if weights and sum(shares) > _CHUNK:
        allowed = f"proportions of whole numbers whose sum is at most {_CHUNK}, such as (3, 1)"
        raise invalid("source.weights", weights, allowed)
    return shares
