"""GSDM: a DiT on a problem's variables, whose attention goes along the edges of their graph.

Weilbach et al., "Graphically Structured Diffusion Models" (2023), section 3: a token for each
variable, attention masked by the graphical model, and one learned embedding for all variables that
may be exchanged.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.nn import dit
from jaxgen.nn.parallel import biased_attention, split, whole_examples_only
from jaxgen.nn.stack import Stack

Edges = tuple[tuple[int, int], ...]


class Block(dit.Block):
    """DiT's block whose tokens attend to their neighbours and to themselves. nodes: how many."""

    nodes: int
    edges: Edges

    def _attention(
        self,
        x: jax.Array,
        condition: jax.Array,
        angles: jax.Array | None,
        alone: jax.Array | None,
    ) -> jax.Array:
        whole_examples_only("with a graph")
        qkv, options = self._qkv(x, len(condition), angles)
        q, k, v = split(qkv, **options)
        joined = adjacency(self.nodes, self.edges)
        h = biased_attention(q, k, v, np.where(joined, 0.0, -np.inf))
        if alone is not None:
            h = jnp.where(alone, v, h)
        return self._project(h.transpose(0, 2, 1, 3).reshape(-1, qkv.shape[-1] // 3), condition)


def adjacency(nodes: int, edges: Edges) -> np.ndarray:
    """Who attends to whom, bool [nodes, nodes]: both ways, and each to itself."""
    joined = np.eye(nodes, dtype=bool)
    for a, b in edges:
        joined[a, b] = joined[b, a] = True
    return joined


class GSDM(dit.DiT):
    """GSDM: a `DiT` of variables [B, N, 1, C] and the graph on them.

    edges: pairs of variables, from 0. kinds: a number for each variable, the same for those that
    may be exchanged (where the graph is the same too); () is all different. patch: 1 for variables;
    of an image, its patches are they. rope is not offered: a graph has no
    places. `attention` is not asked: maps are computed by the plain formula.
    """

    edges: Edges = ()
    kinds: tuple[int, ...] = ()

    def _positions(self, rows: int, columns: int) -> jax.Array:
        kinds = np.asarray(self.kinds or range(rows * columns))
        init = nn.initializers.normal(0.02)
        table = nn.Embed(kinds.max() + 1, self.width, embedding_init=init, name="kinds")
        return table(kinds)

    def _blocks(self, train: bool, shape: tuple[int, int]) -> Stack:
        block = functools.partial(Block, nodes=shape[0] * shape[1], edges=self.edges)
        return dit.blocks_of(self, self.depth, self.width, self.heads, train, block)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        rows, columns = dit.grid(shape, self.patch)
        nodes = rows * columns
        if self.rope:
            raise invalid("model.rope", True, "False: a graph has no places")
        for edge in self.edges:
            if not set(edge) <= set(range(nodes)):
                raise invalid("model.edges", edge, f"pairs of 0 to {nodes - 1}")
        if self.kinds and (len(self.kinds) != nodes or min(self.kinds) < 0):
            raise invalid("model.kinds", self.kinds, f"{nodes} numbers from 0")
