"""Features of images that many processes look at together."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen.metrics.sets.side import Extractor, parts


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """An extractor of which each process does an equal part, and all get everything.

    All processes have to ask it for the same images, in the same order.
    """

    inner: Extractor

    @property
    def name(self) -> str:
        """The extractor's."""
        return self.inner.name

    @property
    def digest(self) -> str:
        """The extractor's."""
        return self.inner.digest

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features [N, d] of images uint8 [N, H, W, C]."""
        return self.parts(images)["features"]

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All that the extractor says of them, by name."""
        count = jax.process_count()
        if count == 1:
            return parts(self.inner, images)
        size = -(-len(images) // count)
        own = jax.process_index() * size + np.arange(size)
        # The last ones do the last image again, so that all have as many.
        found = parts(self.inner, images[np.minimum(own, len(images) - 1)])
        return {name: _everywhere(array)[: len(images)] for name, array in found.items()}


def _everywhere(array: np.ndarray) -> np.ndarray:
    """Parts [n, d] of all processes as one [P n, d], bit for bit."""
    # As bytes: float64 would become float32 on the way.
    bits = np.ascontiguousarray(array).view(np.uint8)
    found = np.ascontiguousarray(multihost_utils.process_allgather(bits, tiled=True))
    return found.view(array.dtype)
