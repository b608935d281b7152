"""Features beside a data set, computed once (`jaxgen encode`), as a column of it.

The file is an .npz: for each half `SPLIT` [N, D] float32, `SPLIT_mirrored` of the mirrored images
where there are some, and `SPLIT_hashes` [N] uint64, one of each example, by which features that are
of other examples, or of the same ones in another order, are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from jaxgen import config as configs
from jaxgen.data.arrays import read_npz
from jaxgen.data.columns import checked, described
from jaxgen.data.source import Coding, Source
from jaxgen.errors import invalid, unknown
from jaxgen.files import local

ROOM = "jaxgen.data"
PROBES = 256


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSource(Source):
    """The source `of`, with one column more: features [N, D], and those of the mirrored images."""

    of: Source
    name: str
    features: np.ndarray
    mirrored: np.ndarray | None

    @property
    def flippable(self) -> bool:
        """Whether the features of the mirrored images are there too."""
        return self.of.flippable and self.mirrored is not None

    @property
    def dtype(self) -> np.dtype:
        """The source's."""
        return self.of.dtype

    @property
    def coding(self) -> Coding | None:
        """As the source's."""
        return self.of.coding

    def visited(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """As the source's."""
        return self.of.visited(positions, seed=seed)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the source's."""
        return self.of.images(indices)

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """As the source's."""
        return self.of.draw(indices, positions=positions, seed=seed, flip=flip)

    def column(self, name: str, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """The features [n, D], of the mirrored image where it is; else the source's column."""
        if name != self.name:
            return self.of.column(name, indices, mirrored)
        found = self.features[indices]
        if self.mirrored is not None:
            found[mirrored] = self.mirrored[indices[mirrored]]
        return found


def features(
    of: Any, path: str, column: str = "feature", verify: bool = False, split: str = "train"
) -> FeatureSource:
    """The source of section `of`, with what `jaxgen encode` wrote to `path` as the column `column`.

    verify: read every example once, to see that the features are of these, in this order; else
    `PROBES` of them, evenly spaced. Raises UsageError for a file that is none, lacks the split, or
    is of other examples.
    """
    source: Source = configs.build(of, ROOM, "config.data.source.of", split=split)
    held = read_npz(local("source.path", path))
    splits = sorted(name.removesuffix("_hashes") for name in held if name.endswith("_hashes"))
    if split not in splits:
        raise unknown(f"source.path {path}: split", split, splits)
    if column in source.columns:
        raise invalid("source.column", column, "a name that the source has not got")
    expected = held[f"{split}_hashes"]
    if len(expected) != len(source):
        given = f"features of {len(expected)} examples"
        raise invalid("source.path", f"{path}, {given}", f"features of these {len(source)}")
    count = len(source) if verify else min(PROBES, len(source))
    places = np.linspace(0, len(source) - 1, count).astype(np.int64)
    wrong = places[hashes(source, places) != expected[places]]
    if len(wrong):
        raise invalid(
            "source.path",
            f"{path}, whose features are of other examples (the first at {wrong[0]})",
            "features of these examples in this order",
            "Write them again: jaxgen encode.",
        )
    rows = checked({column: held[split]}, len(source))
    mirrored = held.get(f"{split}_mirrored")
    return FeatureSource(
        labels=source.labels,
        shape=source.shape,
        class_names=source.class_names,
        levels=source.levels,
        tokens=source.tokens,
        columns={**source.columns, **described(rows)},
        notes=source.notes,
        of=source,
        name=column,
        features=rows[column],
        mirrored=mirrored,
    )


def hashes(source: Source, indices: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """A hash of each example, its label and its class's name: uint64 [n]."""
    found = np.empty(len(indices), np.uint64)
    for start in range(0, len(indices), chunk):
        rows = indices[start : start + chunk]
        for i, (row, image) in enumerate(zip(rows, source.images(rows), strict=True)):
            said = f"{image.dtype} {image.shape} {source.class_names[source.labels[row]]}\n"
            data = said.encode() + np.ascontiguousarray(image).tobytes()
            digest = hashlib.blake2b(data, digest_size=8).digest()
            found[start + i] = int.from_bytes(digest, "little")
    return found
