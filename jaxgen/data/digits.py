"""scikit-learn's embedded handwritten digits: 1,797 images of 8x8, no download."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxgen.data.source import ArraySource, check_split, in_memory


def digits(split: Literal["train", "test", "all"] = "train", channels: int = 1) -> ArraySource:
    """The UCI/scikit-learn digits as float32 [N, 8, 8, channels]: ink 0..16 exactly as x / 8 - 1.

    The split is fixed and stratified: a seeded half of each class, the larger half to "train" for
    classes of odd size (train 901 images, test 896); "all" is the whole in file order.
    """
    from sklearn.datasets import load_digits

    check_split(split, ("train", "test", "all"))
    data = load_digits()
    labels = np.asarray(data.target)
    images = (np.asarray(data.images) / 8 - 1).astype(np.float32)
    if split != "all":
        chosen = stratified_half(labels, second=split == "test")
        images, labels = images[chosen], labels[chosen]
    return in_memory(images, labels, channels=channels, levels=17)


def stratified_half(labels: np.ndarray, *, second: bool) -> np.ndarray:
    """Sorted indices of the first or the second half of every class, drawn by a fixed seed."""
    chance = np.random.Philox(np.random.SeedSequence(0)).random_raw(len(labels))
    halves = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(chance[members], kind="stable")]
        middle = (len(members) + 1) // 2
        halves.append(members[middle:] if second else members[:middle])
    return np.sort(np.concatenate(halves))
