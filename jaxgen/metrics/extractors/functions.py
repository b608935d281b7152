"""Extractors that are no network of ours: the images themselves, and a user's function."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True)
class Identity:
    """Images are their own features: float32 [N, H * W * C], bytes as they are."""

    name: str = "identity"
    digest: str = "none"

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, d] of arrays [N, ...]."""
        images = np.asarray(images)
        return images.reshape(len(images), -1).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionExtractor:
    """A user's function of images uint8 [B, H, W, C], called in batches of at most `batch`."""

    name: str
    digest: str
    function: Callable[[np.ndarray], Any]
    batch: int = 64

    def __post_init__(self) -> None:
        """Check the batch."""
        if self.batch < 1:
            raise invalid("batch", self.batch, "1 or more")

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, d]; UsageError where the function returns anything but rows of numbers."""
        chunks = []
        # No images go through the function too, which knows how many features there are.
        for start in range(0, max(len(images), 1), self.batch):
            chunk = images[start : start + self.batch]
            vectors = np.asarray(self.function(chunk), np.float32)
            if vectors.ndim != 2 or len(vectors) != len(chunk):
                raise invalid(self.name, vectors.shape, f"features of shape ({len(chunk)}, d)")
            chunks.append(vectors)
        return np.concatenate(chunks)


def from_function(name: str, batch: int) -> FunctionExtractor:
    """The extractor of "module:function", called by the function's name.

    Its digest is the sha256 of the module's source file: of the code, not of weights that it may
    read. UsageError where there is no such function.
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError) as error:
        raise invalid("extractor", name, f"module:function ({error})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise invalid("extractor", name, f"module:function; {path} has no such function")
    source = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else "unverified"
    return FunctionExtractor(attribute, digest, function, batch)
