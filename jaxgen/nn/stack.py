"""Many layers of one block, compiled once; on a mesh, one `shard_map` with every exchange in it.

Automatic partitioning is not left to guess here: inside, weights are gathered along `fsdp` a layer
at a time (Zhao et al., "PyTorch FSDP", 2023; Rajbhandari et al., "ZeRO", 2020, stage 3), heads and
hidden units are this device's (`nn.parallel`), and tokens stay with their examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxgen.mesh import BATCH, Layout, cut_places, layout
from jaxgen.nn.layers import checkpointed
from jaxgen.nn.placement import NARROW, placement, tensor_axis

PyTree = Any
Layers = tuple[PyTree, Any, PyTree]
"""Parameters, dropout's keys (or None) and what else each layer has of its own (or None)."""


class Stack(nn.Module):
    """`depth` layers of one block, their parameters stacked on a new axis 0.

    make() gives the block, an unbound module whose __call__(x, *shared) gives x again. scan=True
    compiles it once (compile time flat in depth); False unrolls the same loop over the same
    parameters, so that a checkpoint fits both. remat: a policy of `nn.layers.REMAT`. shared: what
    axis 0 of each further argument is of, "examples", "places" (tokens) or None; it goes to every
    layer alike. What a block sows into "intermediates" ([B, ...]) is sown as "layers", stacked on a
    new axis 0, for whoever makes that collection mutable.
    """

    make: Callable[[], nn.Module]
    depth: int
    scan: bool
    remat: str
    shared: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, x: Any, *shared: Any, places: int | None = None, each: PyTree = None) -> Any:
        """x through all layers: a tree of arrays [B, ...], or a matrix [B * places, D] of tokens.

        Only where `places` is given are tokens cut along `sequence`. each: arrays [depth, ...], of
        which a block is given its own, after all else.
        """
        block = self.make()
        if self.is_initializing():
            seeds = jax.random.split(self.make_rng("params"), self.depth)
            fresh = jax.vmap(lambda key: block.init(key, x, *shared)["params"])(seeds)
        else:
            fresh = self.variables["params"]
        params = {k: self.param(k, lambda _, tree=tree: tree) for k, tree in fresh.items()}
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), self.depth)
        run = functools.partial(self._run, block)
        own = (params, keys, each)
        placed = layout()
        count = jax.tree.leaves(x)[0].shape[0] // (places or 1)
        if placed is None or count % (placed.mesh.shape["data"] * placed.mesh.shape["fsdp"]):
            out, sown = run(own, x, shared)
        else:
            out, sown = self._on_mesh(run, placed, own, x, shared, places)
        if sown:
            self.sow("intermediates", "layers", sown)
        return out

    def _run(
        self,
        block: nn.Module,
        layers: Layers,
        x: Any,
        shared: tuple[Any, ...],
        whole: Callable[[PyTree], PyTree] = lambda layer: layer,
    ) -> tuple[Any, PyTree]:
        """The loop over layers: (x, what they sow); whole(layer) is called on their parameters."""
        kept = ["intermediates"] if self.is_mutable_collection("intermediates") else []

        def body(x: Any, layer: Layers) -> tuple[Any, PyTree]:
            params, key, each = layer
            rngs = {} if key is None else {"dropout": key}
            inputs = shared if each is None else (*shared, each)
            x, sown = block.apply({"params": whole(params)}, x, *inputs, rngs=rngs, mutable=kept)
            return x, sown.get("intermediates", {})

        body = checkpointed(body, self.remat, in_scan=self.scan)
        unroll = 1 if self.scan else self.depth
        return jax.lax.scan(body, x, layers, length=self.depth, unroll=unroll)

    def _on_mesh(
        self,
        run: Callable[..., Any],
        placed: Layout,
        layers: Layers,
        x: Any,
        shared: tuple[Any, ...],
        places: int | None,
    ) -> tuple[Any, PyTree]:
        """`run` on each device's part: examples and places of x, its share of the weights."""
        params, keys, each = layers
        mesh, sequence = placed.mesh, placed.mesh.shape["sequence"]
        cut = places is not None and sequence > 1
        rows = PartitionSpec(BATCH, "sequence") if cut else PartitionSpec(BATCH)
        kinds = {
            "examples": PartitionSpec(BATCH),
            "places": PartitionSpec("sequence") if cut else PartitionSpec(),
            None: PartitionSpec(),
        }
        named: dict[str, tuple[int, ...]] = {}
        _map(params, self.name, lambda name, leaf: named.setdefault(name, leaf.shape))
        enters = {name: _entry(name, shape, mesh) for name, shape in named.items()}
        specs = _map(params, self.name, lambda name, _: enters[name])
        dtype = getattr(self.make(), "dtype", jnp.float32)
        width = x.shape[-1] if cut else None
        if cut:
            x = _padded(x.reshape(-1, places, width), sequence, 1)
            shared = tuple(
                _padded(a, sequence, 0) if kind == "places" and a is not None else a
                for a, kind in zip(shared, self.shared, strict=True)
            )
        if placed.reduce == "bfloat16":
            params = _map(
                params,
                self.name,
                lambda name, a: a.astype(jnp.bfloat16) if NARROW.search(name) else a,
            )

        def whole(layer: PyTree) -> PyTree:
            return _map(layer, self.name, part)

        def part(name: str, leaf: jax.Array) -> jax.Array:
            own = tensor_axis(name, named[name], mesh.shape["tensor"])
            kept = dtype if NARROW.search(name) else leaf.dtype
            for axis, names in enumerate(enters[name]):
                stored = _tuple(names)[1 if axis == own else 0 :]
                if stored:
                    return gathered(leaf, stored, axis - 1, kept, placed.reduce)
            return leaf.astype(kept)

        def local(layers: Layers, x: Any, *shared: Any) -> tuple[Any, PyTree]:
            with cut_places(places if cut else None):
                flat = x.reshape(-1, width) if cut else x
                out, sown = run(layers, flat, shared, whole)
            return out.reshape(x.shape) if cut else out, sown

        everywhere = PartitionSpec()
        out, sown = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=((specs, everywhere, everywhere), rows, *(kinds[k] for k in self.shared)),
            out_specs=(rows, PartitionSpec(None, BATCH)),
            check_vma=False,
        )((params, keys, each), x, *shared)
        return out[:, :places].reshape(-1, width) if cut else out, sown


def stacked(
    block: Callable[..., nn.Module],
    depth: int,
    *,
    scan: bool,
    remat: str,
    shared: tuple[str | None, ...] = (),
) -> Callable[..., Stack]:
    """stacked(Block, depth, ...)(fields of the block, name=...) is their `Stack`."""

    def make(*fields: Any, name: str | None = None, **named: Any) -> Stack:
        one = functools.partial(block, *fields, **named, parent=None)
        return Stack(one, depth, scan, remat, shared, name=name)

    return make


def gathered(
    leaf: jax.Array, axes: tuple[str, ...], axis: int, dtype: Any, reduce: str | None
) -> jax.Array:
    """An array with what is cut along the mesh's `axes` put together on its own `axis`, in `dtype`.

    Its gradient is summed over those devices, each keeping its part: in `dtype`, or in float32.
    """

    def forward(_: Any, a: jax.Array) -> jax.Array:
        return jax.lax.all_gather(a.astype(dtype), axes, axis=axis, tiled=True)

    def backward(_: Any, g: jax.Array) -> jax.Array:
        g = g.astype(leaf.dtype)
        return jax.lax.psum_scatter(g, axes, scatter_dimension=axis, tiled=True)

    if reduce != "float32":
        return forward((), leaf)
    return jax.custom_derivatives.linear_call(forward, backward, (), leaf)


def _map(tree: PyTree, name: str | None, fn: Callable[[str, Any], Any]) -> PyTree:
    """fn(dotted name, leaf) on every leaf of a stack called `name`."""

    def call(path: Any, leaf: Any) -> Any:
        return fn(f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}", leaf)

    return jax.tree_util.tree_map_with_path(call, tree)


def _entry(name: str, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """How a leaf enters: as it lies; what its layer wants cut along `tensor` is, however small."""
    stored, axis = placement(name, shape, mesh), tensor_axis(name, shape, mesh.shape["tensor"])
    if axis is None or len(stored):
        return stored
    return PartitionSpec(*("tensor" if i == axis else None for i in range(len(shape))))


def _tuple(names: Any) -> tuple[str, ...]:
    """The mesh's axes of one entry of a PartitionSpec."""
    return (names,) if isinstance(names, str) else names or ()


def _padded(a: jax.Array, parts: int, axis: int) -> jax.Array:
    """Zeros appended along an axis until `parts` divides it."""
    missing = -a.shape[axis] % parts
    return jnp.pad(a, [(0, missing if i == axis else 0) for i in range(a.ndim)])
