"""A column as a part of the label: how good an example is, told with its class.

A model of any family that is told labels is then told both (Korbak et al., "Pretraining Language
Models with Human Preferences", 2023), and `tune.told` samples it at the best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen import config as configs
from jaxgen.data.source import Source
from jaxgen.errors import invalid
from jaxgen.method.columns import require_column

ROOM = "jaxgen.data"


def binned(of: Any, column: str, edges: Sequence[float], split: str = "train") -> Source:
    """The source of section `of` with labels y * (len(edges) + 1) + c, named "cat 0", "cat 1", ...

    c counts the edges, rising, that an example's number in `column` reaches: the more the better.
    Every class needs examples of every c. Raises UsageError: no such column, one that is no number
    of each example, edges that do not rise, a c without examples.
    """
    source: Source = configs.build(of, ROOM, "config.data.source.of", split=split)
    if require_column(source, column, "source.column").shape != ():
        raise invalid("source.column", source.columns[column].shape, "a number of each example")
    if not edges or list(edges) != sorted(set(edges)):
        raise invalid("source.edges", edges, "one number or more, each above the last")
    every = np.arange(len(source))
    values = source.column(column, every, np.zeros(len(source), bool))
    levels = len(edges) + 1
    labels = source.labels * levels + np.digitize(values, edges)
    names = tuple(f"{name} {c}" for name in source.class_names for c in range(levels))
    missing = sorted(set(range(len(names))) - set(labels.tolist()))
    if missing:
        given = f"{edges}, with no example of {', '.join(names[n] for n in missing[:8])}"
        raise invalid("source.edges", given, "edges between which every class has examples")
    return dataclasses.replace(source, labels=labels.astype(np.int32), class_names=names)
