"""A source that has examples of some of a run's classes: a few images for a model of many."""

from __future__ import annotations

from typing import Any

from jaxgen import config as configs
from jaxgen.data.source import Source

ROOM = "jaxgen.data"


def among(of: Any, classes: tuple[str, ...], split: str = "train") -> Source:
    """The source of section `of`, whose classes are some of `classes`, matched by name.

    classes: those of the run, label 0 first; what `of` lacks has no examples. For a model that is
    taught a class besides those that it knows (`tune.dreambooth`). Raises UsageError for a class of
    `of` that is not among them.
    """
    source: Source = configs.build(of, ROOM, "config.data.source.of", split=split)
    return source.relabelled(
        classes, "config.data.source.of", whose="among config.data.source.classes", fewer=True
    )
