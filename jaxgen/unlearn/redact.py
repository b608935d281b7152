"""Redaction: what a network is told of some labels becomes what it is told of another.

Kong & Chaudhuri, "Data Redaction from Conditional Generative Models" (2023): the generator is
frozen, and its conditioning network H distilled into H', which minimises
E_keep |H'(c) - H(c)|^2 + weight E_redacted |H'(c) - H(reference)|^2. Of labels H is a table, or
several; whatever a network makes of a row, it then makes of a redacted label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Batch, Method, Spec
from jaxgen.tune.changes import named, shapes, training_changes

PyTree = Any
GROUP = "redaction"
"""The parameters that are trained: what is added to the tables, by the tables' names."""


def redact(
    method: Method,
    *,
    spec: Spec,
    classes: tuple[int | str, ...],
    reference: int | str | None = None,
    match: str = r"\blabels?\d*\.(embedding|kernel)$",
    weight: float = 1.0,
) -> Method:
    """Redact `classes` (labels or names): asked for one of them, the model draws `reference`.

    For every family that looks labels up in a table (where that is normalised as a whole, as
    EDM2's, kept rows move with its norm). It needs no data and trains a change of the tables alone,
    0 at first, so that the rest keeps its bits; give the trained model by `config.start`.
    reference: a class, or None: no label, where the tables have a row for it. match: a regular
    expression of the dotted names of the tables [labels, ...]: all through which a label enters,
    else it shows through. Raises UsageError where no table matches, and for classes that there are
    not.
    """
    known = shapes(method, "unlearn.redact")
    gone = sorted({spec.label(c, "unlearn.redact.classes") for c in classes})
    instead = spec.label(reference, "unlearn.redact.reference")
    if not gone or instead in gone or len(gone) == spec.num_classes:
        allowed = "a class or more, neither all of them nor the reference"
        raise invalid("unlearn.redact.classes", classes, allowed)
    if weight <= 0:
        raise invalid("unlearn.redact.weight", weight, "weight > 0")
    names = _tables(known, spec.num_classes, instead, match)
    asked = jnp.arange(spec.num_classes + 1).at[jnp.asarray(gone)].set(instead)
    redacted = jnp.isin(jnp.arange(spec.num_classes + 1), jnp.asarray(gone))

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        changes, tables = named(params[GROUP]), named(params)
        kept, moved = jnp.zeros(()), jnp.zeros(())
        for name in names:
            old = tables[name]
            rows = len(old)
            off = (old + changes[name] - old[asked[:rows]]).reshape(rows, -1)
            square, own = (off**2).mean(1), redacted[:rows]
            kept += jnp.mean(square, where=~own)
            moved += jnp.mean(square, where=own)
        return kept + weight * moved, ({"kept": kept, "redacted": moved}, extra)

    return training_changes(method, names, GROUP, loss)


def _tables(known: Mapping[str, Any], classes: int, instead: int, match: str) -> list[str]:
    """Names of the arrays with a row for each label that match. Raises UsageError for none."""
    sizes = (classes, classes + 1)
    rows = {name: a.shape[0] for name, a in known.items() if a.ndim > 1}
    tables = {n.replace("/", "."): n for n, count in rows.items() if count in sizes}
    found = [n for dotted, n in tables.items() if re.search(match, dotted)]
    if not found:
        some = ", ".join(tables) or "nothing: no array has a row for each label"
        raise invalid("unlearn.redact.match", match, f"a regular expression that matches {some}")
    if any(instead >= rows[n] for n in found):
        allowed = "a class: the tables have no row for no label"
        raise invalid("unlearn.redact.reference", None, allowed)
    return found
