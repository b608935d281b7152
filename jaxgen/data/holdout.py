"""A test half held out of the training half: by content, so that copies stay on one side."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from typing import Any

import numpy as np

from jaxgen.data.source import Coding, Source, Target
from jaxgen.errors import invalid

_CHUNK = 1024


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SomeOf(Source):
    """The examples of the source `of` at `places` int64 [N], as a source."""

    of: Source
    places: np.ndarray

    @property
    def flippable(self) -> bool:
        """As the source."""
        return self.of.flippable

    @property
    def dtype(self) -> np.dtype:
        """The source's."""
        return self.of.dtype

    @property
    def coding(self) -> Coding | None:
        """As the source's."""
        return self.of.coding

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the source's."""
        return self.of.images(self.places[indices])

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """As the source's."""
        return self.of.draw(self.places[indices], positions=positions, seed=seed, flip=flip)

    def column(self, name: str, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """As the source's."""
        return self.of.column(name, self.places[indices], mirrored)


def some_of(source: Source, places: np.ndarray) -> SomeOf:
    """The examples of a source at `places` int64 [N], in this order."""
    fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(Source)}
    fields |= {"labels": source.labels[places], "notes": ()}
    return SomeOf(of=source, places=places, **fields)


def held_out(source: Source, fraction: float, seed: int) -> tuple[Source, Source, dict[str, Any]]:
    """(the rest, the test half of about `fraction` of every class, what to record of the split).

    Examples of equal content (the bytes that models see) are on the same side, whatever their
    files, labels and order. Which contents are held out follows from them and `seed` alone: those
    whose keyed hashes are smallest, class by class. Training has something of every class; a class
    of a single content is left to it. Every example is decoded once. Raises UsageError for a
    fraction out of range, a source without examples, and one of which nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise invalid("config.data.holdout", fraction, "0 for none, or a share between 0 and 1")
    if isinstance(source, Target):
        raise invalid("config.data.holdout", fraction, "0 for a target, which has no examples")
    digests = np.concatenate(
        [
            _digests(source.images(np.arange(start, min(start + _CHUNK, len(source)))), seed)
            for start in range(0, len(source), _CHUNK)
        ]
    )
    chosen: set[bytes] = set()
    kept: set[bytes] = set()
    classes = [Counter(digests[source.labels == y].tolist()) for y in range(source.num_classes)]
    # Classes with few contents first, so that one that shares them with others keeps some.
    for counts in sorted(classes, key=lambda counts: (len(counts), sorted(counts))):
        wanted = max(1, round(fraction * counts.total()))
        have = sum(n for content, n in counts.items() if content in chosen)
        free = [content for content in sorted(counts) if content not in chosen]
        # The last one is for training, unless one of this class is there already.
        for content in free if kept.intersection(free) else free[:-1]:
            if have < wanted and content not in kept:
                chosen.add(content)
                have += counts[content]
        if not set(counts) - chosen:
            chosen.remove(min(counts))
        kept |= set(counts) - chosen
    test = np.array([digest in chosen for digest in digests.tolist()])
    if not test.any() or test.all():
        given = f"{fraction}, of {len(set(digests.tolist()))} different examples"
        raise invalid("config.data.holdout", given, "enough that differ, in every class")
    about = {
        "fraction": fraction,
        "seed": seed,
        "train": int((~test).sum()),
        "test": int(test.sum()),
        "digest": hashlib.sha256(b"".join(sorted(chosen))).hexdigest(),
    }
    rest, half = (some_of(source, np.flatnonzero(side)) for side in (~test, test))
    return rest, half, about


def _digests(images: np.ndarray, seed: int) -> np.ndarray:
    """A keyed hash of each image's bytes, dtype and shape: bytes [n]."""
    said = f"{images.dtype} {images.shape[1:]} {seed}".encode()
    found = [
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16, key=said[:64])
        for image in images
    ]
    # As hexadecimal text, since NumPy cuts zeros off the end of bytes.
    return np.array([h.hexdigest().encode() for h in found])
