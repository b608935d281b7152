"""Redaction: what a network is told of some labels becomes what it is told of another.

Kong & Chaudhuri, "Data Redaction from Conditional Generative Models" (2023): the generator is
frozen, and its conditioning network H distilled into H', which minimises
E_keep |H'(c) - H(c)|^2 + weight E_redacted |H'(c) - H(reference)|^2. Of labels H is a table, or
several; whatever a network makes of a row, it then makes of a redacted label.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Batch, Learner, Method, Spec, on_params, retrained, training_of

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
    training = training_of(method, "unlearn.redact")
    gone = sorted({spec.label(c, "unlearn.redact.classes") for c in classes})
    instead = spec.label(reference, "unlearn.redact.reference")
    if not gone or instead in gone or len(gone) == spec.num_classes:
        allowed = "a class or more, neither all of them nor the reference"
        raise invalid("unlearn.redact.classes", classes, allowed)
    if weight <= 0:
        raise invalid("unlearn.redact.weight", weight, "weight > 0")
    shapes = jax.eval_shape(training.fresh, jax.random.key(0))[0]
    names = _tables(shapes, spec.num_classes, instead, match)
    asked = jnp.arange(spec.num_classes + 1).at[jnp.asarray(gone)].set(instead)
    redacted = jnp.isin(jnp.arange(spec.num_classes + 1), jnp.asarray(gone))

    def merged(params: PyTree) -> PyTree:
        tables = trees.flatten_dict({k: a for k, a in params.items() if k != GROUP}, sep="/")
        for name, change in trees.flatten_dict(params[GROUP], sep="/").items():
            tables[name] = tables[name] + change
        return trees.unflatten_dict(tables, sep="/")

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        tables = trees.flatten_dict(params, sep="/")
        zeros = {name: jnp.zeros_like(tables[name]) for name in names}
        return {**params, GROUP: trees.unflatten_dict(zeros, sep="/")}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        changes, tables = (trees.flatten_dict(p, sep="/") for p in (params[GROUP], params))
        kept, moved = jnp.zeros(()), jnp.zeros(())
        for name in names:
            old = tables[name]
            rows = len(old)
            off = (old + changes[name] - old[asked[:rows]]).reshape(rows, -1)
            square, own = (off**2).mean(1), redacted[:rows]
            kept += jnp.mean(square, where=~own)
            moved += jnp.mean(square, where=own)
        return kept + weight * moved, ({"kept": kept, "redacted": moved}, extra)

    optimizer = training.optimizer
    if isinstance(optimizer, Mapping):
        optimizer = next(iter(optimizer.values()))
    learners = {"net": Learner(loss=loss, trains=(GROUP,))}
    made = retrained(
        method, learners=learners, fresh=fresh, optimizer=optimizer, averaged=(GROUP,), prepare=None
    )
    return on_params(dataclasses.replace(made, train_flops=None), merged)


def _tables(shapes: PyTree, classes: int, instead: int, match: str) -> list[str]:
    """Names of the arrays with a row for each label that match. Raises UsageError for none."""
    sizes = (classes, classes + 1)
    rows = {n: a.shape[0] for n, a in trees.flatten_dict(shapes, sep="/").items() if a.ndim > 1}
    tables = {n.replace("/", "."): n for n, count in rows.items() if count in sizes}
    found = [n for dotted, n in tables.items() if re.search(match, dotted)]
    if not found:
        known = ", ".join(tables) or "nothing: no array has a row for each label"
        raise invalid("unlearn.redact.match", match, f"a regular expression that matches {known}")
    if any(instead >= rows[n] for n in found):
        allowed = "a class: the tables have no row for no label"
        raise invalid("unlearn.redact.reference", None, allowed)
    return found
