"""Inclusive tokens: a class's embedding for each category of an attribute, to be drawn evenly.

Zhang et al., "ITI-GEN: Inclusive Text-to-Image Generation" (2023), eq. 4 and 5, on labels: where
they align text embeddings with directions between the mean embeddings of reference images, here it
is samples whose mean features are as far apart, and in that direction, as the references' are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.method import Batch, Method, Spec, encoder_of
from jaxgen.method.streams import example_keys
from jaxgen.tune.tokens import TABLES, added, drawn, labels_of, rows_trained, smooth_sampler

PyTree = Any
DRAWS = 2**32 - 20
"""Of a step's key: what the samples are drawn from."""


def inclusive(
    method: Method,
    *,
    spec: Spec,
    classes: tuple[int | str, ...],
    parent: int | str,
    encoder: Any = "flat",
    meaning: float = 1.0,
    margin: float = 0.8,
    last: int = 1,
    sample: Mapping[str, Any] | None = None,
    match: str = TABLES,
) -> Method:
    """Train changes of the rows of `classes`, categories of `parent`, by data of each of them.

    For each pair of categories with images in the batch: the squared distance of the difference of
    their samples' mean features and that of the images', over the latter's square. With weight
    `meaning`, each category's hinge max(0, margin - cos) between its samples' mean features and
    those of the parent's samples of the same noise. Start from the trained model with the parent as
    every category's parent (`config.start.parents`); data are a few images of each.

    encoder: features, a section of `frozen.encoders`. last, sample, match: as `tune.tokens`. Raises
    UsageError: fewer than two categories, values out of range, and what `tune.tokens` refuses.
    """
    option = "tune.inclusive"
    features = encoder_of(part(encoder, ROOMS["encoder"], f"{option}.encoder"))
    rows, count = labels_of(spec, classes, f"{option}.classes"), len(classes)
    whole = spec.label(parent, f"{option}.parent")
    if count < 2:
        raise invalid(f"{option}.classes", classes, "two categories or more")
    if meaning < 0 or last < 1 or not -1 <= margin <= 1:
        allowed = "meaning >= 0, -1 <= margin <= 1, last >= 1"
        raise invalid(option, (meaning, margin, last), allowed)
    sampler = smooth_sampler(method, option, sample)

    def objective(params: PyTree, batch: Batch, key: jax.Array) -> Any:
        keys = example_keys(jax.random.fold_in(key, DRAWS), batch)
        which = jnp.arange(len(keys)) % count
        changed = added(params, rows, spec.num_classes)
        ours = features(drawn(sampler, changed, keys, rows[which], last))
        given = (batch["label"][:, None] == rows).astype(jnp.float32)
        made, there = means(ours, jax.nn.one_hot(which, count)), given.sum(0) > 0
        goal = means(features(batch["image"]), given)
        pairs = (there[:, None] & there) * (1 - jnp.eye(count))
        d, e = (a[:, None] - a for a in (made, goal))
        error = ((d - e) ** 2).sum(-1) / jnp.maximum((e**2).sum(-1), 1e-12)
        apart = (pairs * error).sum() / jnp.maximum(pairs.sum(), 1)
        asked = jnp.full(len(keys), whole)
        held = jax.lax.stop_gradient(params)
        base = features(sampler.fn({k: a for k, a in held.items() if k != "tokens"}, keys, asked))
        lost = jnp.maximum(margin - cosine(made, base.mean(0)), 0).mean()
        return apart + meaning * lost, {"apart": apart, "meaning": lost}

    return rows_trained(method, spec, rows, match, objective)


def means(x: jax.Array, member: jax.Array) -> jax.Array:
    """Means [K, D] of x [B, D] over the members [B, K] of each category; 0 of an empty one."""
    return member.T @ x / jnp.maximum(member.sum(0), 1)[:, None]


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines [K] of a [K, D] with b [D]."""
    lengths = jnp.sqrt((a**2).sum(-1) * (b**2).sum() + 1e-12)
    return a @ b / lengths
