"""Bars and stripes: binary images whose law is known, for exact answers in nats."""

from __future__ import annotations

import itertools

import numpy as np

from jaxgen.data.source import ArraySource, check_split, in_memory
from jaxgen.errors import invalid


def bars_and_stripes(split: str = "train", size: int = 3) -> ArraySource:
    """The 2^(size + 1) - 2 images of equal rows or of equal columns, each once; float32 -1 or 1.

    Images are [size, size, 1], of one class. The source is the whole law, every image equally
    likely, so "train" and "test" are the same and its entropy is `entropy(size)`: no model has a
    lower mean negative log-likelihood (MacKay 2003, chapter 43, counts the two plain images twice;
    here they count once).

    Raises UsageError for another split, or a size outside 2 .. 10.
    """
    check_split(split, ("train", "test"))
    if not 2 <= size <= 10:
        raise invalid("source.size", size, "2 <= size <= 10")
    lines = np.array(list(itertools.product((-1.0, 1.0), repeat=size)), np.float32)
    rows = np.repeat(lines[:, :, None], size, axis=2)
    images = np.unique(np.concatenate([rows, rows.swapaxes(1, 2)]), axis=0)
    return in_memory(
        images, np.zeros(len(images), np.int32), class_names=("bars and stripes",), levels=2
    )


def entropy(size: int) -> float:
    """ln of the number of images, in nats: 1.791759 at size 2, 2.639057 at 3."""
    return float(np.log(2 ** (size + 1) - 2))
