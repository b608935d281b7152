"""Retrieved neighbours as descriptions: "Semi-Parametric Neural Image Synthesis".

Blattmann et al. (2022): in training an image's description is the set of the encodings of its
nearest neighbours in a database; a sample's, the neighbours of a query. The network keeps what
neighbours have in common with an image, the database what there is: another database, other images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.method import Encoder, Spec, encoder_of, fold

QUERY = 0
"""A description's stream: which image of the database is the query."""

PyTree = Any

BATCH = 256
"""Examples of a database encoded at a time."""


def nearest(
    queries: jax.Array,
    database: jax.Array,
    count: int,
    *,
    block: int = 65_536,
    axis: str | None = None,
) -> jax.Array:
    """Indices int32 [B, count] of the rows of database [M, D] nearest to queries [B, D], in order.

    Exact up to rounding, by Euclidean distance, in blocks of the database, so that [B, M] is never
    held. axis: within `shard_map`, the mesh axis that cuts the database into equal parts; each
    device searches its own, and the best of all are chosen.
    """
    rows = database.shape[0]
    if not 1 <= count <= rows:
        raise invalid("describe.count", count, f"1 to the database's {rows} rows")
    # Distances do not care where the origin is, but their rounding does.
    centre = database.mean(0)
    if axis is not None:
        centre = jax.lax.pmean(centre, axis)
    queries, database = queries - centre, database - centre
    block = min(block, rows)
    starts = block * jnp.arange(-(-rows // block), dtype=jnp.int32)

    def best(first: Any, second: Any) -> tuple[jax.Array, jax.Array]:
        apart, index = (jnp.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
        nearer, place = jax.lax.top_k(-apart, count)
        return -nearer, jnp.take_along_axis(index, place, axis=1)

    def search(nearest_yet: Any, start: jax.Array) -> tuple[Any, None]:
        # Where blocks do not divide the rows the last one begins earlier; what was seen is out.
        first = jnp.minimum(start, rows - block)
        rows_of_block = jax.lax.dynamic_slice_in_dim(database, first, block)
        apart = (
            (queries**2).sum(-1)[:, None]
            + (rows_of_block**2).sum(-1)
            - 2 * queries @ rows_of_block.T
        )
        index = first + jnp.arange(block, dtype=jnp.int32)
        apart = jnp.where(index >= start, apart, jnp.inf)
        return best(nearest_yet, (apart, jnp.broadcast_to(index, apart.shape))), None

    shape = (queries.shape[0], count)
    nearest_yet = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    if axis is None:
        return jax.lax.scan(search, nearest_yet, starts)[0][1]
    nearest_yet = jax.tree.map(lambda a: jax.lax.pcast(a, axis, to="varying"), nearest_yet)
    apart, index = jax.lax.scan(search, nearest_yet, starts)[0]
    index = index + rows * jax.lax.axis_index(axis)
    everywhere = (jax.lax.all_gather(a, axis, axis=1, tiled=True) for a in (apart, index))
    nothing = jnp.full((shape[0], 0), jnp.inf), jnp.zeros((shape[0], 0), jnp.int32)
    return best(nothing, tuple(everywhere))[1]


def neighbours(
    spec: Spec,
    *,
    encoder: Encoder | Callable[[jax.Array], jax.Array],
    database: Any,
    count: int = 4,
    skip: int = 0,
    labelled: bool = False,
) -> Description:
    """The encodings [B, count, D] of the nearest neighbours in a database.

    encoder: examples -> vectors [B, D], a section of `jaxgen.frozen.encoders` or a function.
    database: an .npz file with `images` and, for labelled, `labels`, as the source `arrays.arrays`
    has them, or (images, labels); it is encoded once. skip: nearest ones left out in training, 1
    where the database is the training data. A sample's query is a random row of the database;
    labelled: of its label's. To sample from another database: `sample.describe`.
    """
    images, labels = _open(database, spec)
    if skip < 0 or not 1 <= count <= len(images) - skip:
        allowed = f"skip >= 0 and 1 <= count <= {len(images)} rows - skip"
        raise invalid("describe.count", (count, skip), allowed)
    known = encoder_of(encoder)
    chunks = [jnp.asarray(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    vectors = np.concatenate([np.asarray(known(chunk)) for chunk in chunks])
    if vectors.ndim != 2:
        raise invalid("describe.encoder", vectors.shape, "a function to vectors [B, D]")
    rows = np.arange(len(vectors))
    if labelled:
        if labels is None:
            raise invalid("describe.database", "no labels", "labels, to draw by label")
        missing = sorted(set(range(spec.num_classes)) - set(labels.tolist()))
        if missing:
            raise invalid("describe.database", f"no example of {missing}", "every label")
        allowed_rows = np.stack([labels == c for c in range(spec.num_classes)] + [rows >= 0])
    else:
        allowed_rows = np.ones((spec.num_classes + 1, len(vectors)), bool)
    frozen = {
        "encoder": known.params,
        "database": vectors,
        "logits": np.where(allowed_rows, 0.0, -np.inf).astype(np.float32),
    }

    def of(frozen: PyTree, x: jax.Array) -> jax.Array:
        queries, held = known.apply(frozen["encoder"], x), frozen["database"]
        return held[nearest(queries, held, count + skip)[:, skip:]]

    def draw(params: PyTree, frozen: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        rows = jax.vmap(jax.random.categorical)(fold(keys, QUERY), frozen["logits"][labels])
        held = jnp.asarray(frozen["database"])
        return held[nearest(held[rows], held, count)]

    return Description(of, draw, frozen=jax.tree.map(jnp.asarray, frozen))


def _open(database: Any, spec: Spec) -> tuple[np.ndarray, np.ndarray | None]:
    """(float32 images [M, *shape], labels [M] or None)."""
    if isinstance(database, str):
        if not Path(database).is_file():
            raise invalid("describe.database", database, "an .npz file")
        with np.load(database, allow_pickle=False) as file:
            if "images" not in file:
                raise invalid("describe.database", sorted(file), "an .npz file with `images`")
            images, labels = file["images"], file.get("labels")
    else:
        images, labels = (None if a is None else np.asarray(a) for a in database)
    assert images is not None
    if images.shape[1:] != tuple(spec.shape):
        raise invalid("describe.database", images.shape, f"images of shape {tuple(spec.shape)}")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 127.5 - 1
    return images.astype(np.float32), labels
