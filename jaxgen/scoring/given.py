"""Images that someone gives to be classified or measured, in the place of a half of the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data import Source
from jaxgen.data.classes import matched
from jaxgen.data.pixels import BACKGROUND, MODES
from jaxgen.data.source import ArraySource
from jaxgen.errors import invalid
from jaxgen.metrics.sets.reading import Set, load
from jaxgen.run.model import Model
from jaxgen.scoring.common import part
from jaxgen.training.log import say

OPTION = "--images"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Examples to look at: a source, the places in it, and what they are of.

    name: of the receipt. labelled: whether the source's labels mean anything. about: for a receipt.
    """

    source: Source
    order: np.ndarray
    name: str
    labelled: bool
    about: dict[str, Any]


def chosen(model: Model, split: str, images: str | Path | None, limit: int, seed: int) -> Chosen:
    """A half of the model's data, or images of a folder, a .npy or a .npz (`metrics.sets.load`).

    limit: of a random part; 0 for all. Given images keep their order. A folder's classes are
    matched with the model's by name, labels in a .npz are the model's own. Raises UsageError for
    images that the model is not of, labels out of range, classes that it does not know, and where
    the data of a half are not there.
    """
    if images is None:
        source, order = part(model.setup, split, limit, seed)
        halves = {} if model.setup.holdout is None else {"holdout": model.setup.holdout}
        return Chosen(source, order, split, True, {"split": split, **halves})
    spec, section = model.setup.spec, model.setup.data.source
    seen = (spec if model.tokenizer is None else model.tokenizer.setup.spec).shape
    channels = seen[2] if len(seen) == 3 and seen[2] in MODES else None
    # Of a folder, as training sees it.
    background = section.get("background", BACKGROUND) if hasattr(section, "get") else BACKGROUND
    found = load(images, option=OPTION, channels=channels, background=background)
    for note in found.notes:
        say(note)
    if found.images is None or spec.target is not None:
        raise invalid(OPTION, str(images), "images, for a model of images")
    labels = None if found.labels is None else _labels(found, spec.class_names)
    examples = model.examples(found.images)
    source = ArraySource(
        labels=np.zeros(len(examples), np.int32) if labels is None else labels,
        shape=tuple(examples.shape[1:]),
        class_names=spec.class_names,
        levels=spec.levels,
        tokens=spec.tokens,
        array=examples,
    )
    order = np.arange(len(source))
    if limit:
        order = np.sort(np.random.default_rng(seed).permutation(order)[:limit])
    return Chosen(source, order, "given", labels is not None, {"split": "given", **_about(found)})


def _about(found: Set) -> dict[str, Any]:
    said = found.describe()
    return {"given": {key: said[key] for key in ("name", "sha256", "count")}}


def _labels(found: Set, names: tuple[str, ...]) -> np.ndarray:
    """The labels of a set as the model's, int32 [N]."""
    assert found.labels is not None
    if found.classes is None:
        wrong = found.labels[(found.labels < 0) | (found.labels >= len(names))]
        if len(wrong):
            raise invalid(f"{OPTION}: labels", int(wrong[0]), f"0 to {len(names) - 1}")
        return found.labels.astype(np.int32)
    whose = "the model's classes"
    return matched(found.classes, names, option=OPTION, whose=whose, fewer=True)[found.labels]
