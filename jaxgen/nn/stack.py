"""Many layers of one block, compiled once; on a mesh, one `shard_map` with every exchange in it.

Automatic partitioning is not left to guess here: inside, weights are gathered along `fsdp` a layer
at a time (Zhao et al., "PyTorch FSDP", 2023; Rajbhandari et al., "ZeRO", 2020, stage 3), heads and
hidden units are this device's (`nn.parallel`), and tokens stay with their examples. What layers
return besides (taps, all outputs) and take besides (skips) is cut as what goes through them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxgen.errors import invalid
from jaxgen.mesh import BATCH, Layout, cut_places, layout
from jaxgen.nn.layers import checkpointed
from jaxgen.nn.parallel import own_places
from jaxgen.nn.placement import NARROW, placement, tensor_axis

PyTree = Any
Layers = tuple[PyTree, Any, PyTree]
"""Parameters, dropout's keys (or None) and what else each layer has of its own (a tuple)."""

Taps = tuple[int, ...]
"""Numbers k of layers, from 1: the output after k of them."""


class Stack(nn.Module):
    """`depth` layers of one block, their parameters stacked on a new axis 0.

    make() gives the block, an unbound module whose __call__(x, *shared) gives x again. scan=True
    compiles it once (compile time flat in depth); False unrolls the same loop over the same
    parameters, so that a checkpoint fits both. remat: a policy of `nn.layers.REMAT`. shared: what
    each further argument is of, which goes to every layer alike: "examples" [B, ...], "places"
    [N, ...], "tokens" [B, N, ...] or None, anything. per_layer: the same of each array of `each`,
    after its axis of layers. What a block sows into "intermediates" ([B, ...]) is sown as "layers",
    stacked on a new axis 0, for whoever makes that collection mutable; what it sows into
    "statistics" is handed back to whoever asks for it.
    """

    make: Callable[[], nn.Module]
    depth: int
    scan: bool
    remat: str
    shared: tuple[str | None, ...] = ()
    per_layer: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Any,
        *shared: Any,
        places: int | None = None,
        each: tuple[PyTree, ...] = (),
        taps: Taps | None = None,
        every: bool = False,
        span: tuple[int, int] | None = None,
        statistics: bool = False,
    ) -> Any:
        """x through all layers: a tree of arrays [B, ...], or a matrix [B * places, D] of tokens.

        Only where `places` is given are tokens cut along `sequence`. each: arrays [depth, ...], of
        which a block is given its own, after all else. span: (a, b), only the layers after a up to
        b; taps and `each` still count from the first of all.

        Returns x; with taps, () included, (x, {k: the output after k layers}); with every=True
        (x, all layers' outputs on a new axis 0); with statistics=True one more, {name: [depth, B,
        ...]}, what blocks sow of "statistics". Such outputs of tokens are [B, places, D]. Taps
        are kept in the loop's state: one compiled block still, and memory for what is asked for.
        Raises UsageError for a tap that is no layer.
        """
        assert not (taps and every), "taps are among all outputs"
        check_taps(taps or (), self.depth)
        block = self.make()
        if self.is_initializing():
            seeds = jax.random.split(self.make_rng("params"), self.depth)
            inputs = (*shared, *jax.tree.map(lambda a: a[0], each))
            fresh = jax.vmap(lambda key: block.init(key, x, *inputs)["params"])(seeds)
        else:
            fresh = self.variables["params"]
        params = {k: self.param(k, lambda _, tree=tree: tree) for k, tree in fresh.items()}
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), self.depth)
        first, last = span or (0, self.depth)
        told = [
            *(["intermediates"] if self.is_mutable_collection("intermediates") else []),
            *(["statistics"] if statistics else []),
        ]
        run = functools.partial(self._run, block, taps or (), every, places, first, told)
        layers = (params, keys, each)
        if span is not None:
            layers = jax.tree.map(lambda a: a[first:last], layers)
        placed = layout()
        count = jax.tree.leaves(x)[0].shape[0] // (places or 1)
        if placed is None or count % (placed.mesh.shape["data"] * placed.mesh.shape["fsdp"]):
            out, kept, sown = run(layers, x, shared)
        else:
            out, kept, sown = self._on_mesh(run, placed, layers, x, shared, places, every)
        if sown.get("intermediates"):
            self.sow("intermediates", "layers", sown["intermediates"])
        outputs = (out, kept) if every or taps is not None else (out,)
        if statistics:
            return *outputs, {name: a for name, (a,) in sown.get("statistics", {}).items()}
        return outputs if len(outputs) > 1 else out

    def _run(
        self,
        block: nn.Module,
        taps: Taps,
        every: bool,
        places: int | None,
        first: int,
        told: list[str],
        layers: Layers,
        x: Any,
        shared: tuple[Any, ...],
        whole: Callable[[PyTree], PyTree] = lambda layer: layer,
    ) -> tuple[Any, PyTree, PyTree]:
        """The loop over layers: (x, outputs asked for, what they sow).

        first: how many layers come before these. told: the collections of what they sow.
        whole(layer) is called on their parameters.
        """

        def body(x: Any, layer: Layers) -> tuple[Any, PyTree]:
            params, key, each = layer
            rngs = {} if key is None else {"dropout": key}
            inputs = (*shared, *each)
            variables = {"params": whole(params)}
            out: tuple[Any, PyTree] = block.apply(variables, x, *inputs, rngs=rngs, mutable=told)
            return out

        body = checkpointed(body, self.remat, in_scan=self.scan)

        # Outside of what is checkpointed, so that the backward pass keeps nothing of the taps.
        def step(state: Any, layer: tuple[Any, Layers]) -> tuple[Any, tuple[PyTree, PyTree]]:
            (x, kept), (number, layer_inputs) = state, layer
            x, sown = body(x, layer_inputs)
            kept = {k: _where(number == k, x, before) for k, before in kept.items()}
            return (x, kept), (x if every else {}, sown)

        depth = jax.tree.leaves(layers[0])[0].shape[0]
        numbers = first + jnp.arange(1, depth + 1) if taps else None
        unroll = 1 if self.scan else depth
        (x, kept), (outputs, sown) = jax.lax.scan(
            step,
            (x, {k: jax.tree.map(jnp.zeros_like, x) for k in taps}),
            (numbers, layers),
            length=depth,
            unroll=unroll,
        )
        kept = outputs if every else kept
        if places is not None:
            n = own_places(places)
            kept = jax.tree.map(lambda a: a.reshape(*a.shape[:-2], -1, n, a.shape[-1]), kept)
        return x, kept, sown

    def _on_mesh(
        self,
        run: Callable[..., Any],
        placed: Layout,
        layers: Layers,
        x: Any,
        shared: tuple[Any, ...],
        places: int | None,
        every: bool,
    ) -> tuple[Any, PyTree, PyTree]:
        """`run` on each device's part: examples and places of x, its share of the weights."""
        params, keys, each = layers
        mesh, sequence = placed.mesh, placed.mesh.shape["sequence"]
        cut = places is not None and sequence > 1
        rows = _part("tokens" if cut else "examples", cut)
        cuts = [_part(kind, cut) for kind in self.shared]
        per_layer = tuple(PartitionSpec(None, *_part(kind, cut)) for kind in self.per_layer)
        named: dict[str, tuple[int, ...]] = {}
        _map(params, self.name, lambda name, leaf: named.setdefault(name, leaf.shape))
        enters = {name: _entry(name, shape, mesh) for name, shape in named.items()}
        specs = _map(params, self.name, lambda name, _: enters[name])
        dtype = getattr(self.make(), "dtype", jnp.float32)
        width = x.shape[-1] if cut else None
        if cut:
            x = _padded(x.reshape(-1, places, width), rows, sequence)
            shared, each = (
                tuple(_padded(a, spec, sequence) for a, spec in zip(inputs, specs, strict=True))
                for inputs, specs in ((shared, cuts), (each, per_layer))
            )
        if placed.reduce == "bfloat16":
            params = _map(
                params,
                self.name,
                lambda name, a: a.astype(jnp.bfloat16) if NARROW.search(name) else a,
            )

        def whole(layer: PyTree) -> PyTree:
            return _map(layer, self.name, weight)

        def weight(name: str, leaf: jax.Array) -> jax.Array:
            tensor = tensor_axis(name, named[name], mesh.shape["tensor"])
            kept = dtype if NARROW.search(name) else leaf.dtype
            for axis, names in enumerate(enters[name]):
                stored = _tuple(names)[1 if axis == tensor else 0 :]
                if stored:
                    return gathered(leaf, stored, axis - 1, kept, placed.reduce)
            return leaf.astype(kept)

        def local(layers: Layers, x: Any, *shared: Any) -> tuple[Any, PyTree, PyTree]:
            with cut_places(places if cut else None):
                flat = x.reshape(-1, width) if cut else x
                out, kept, sown = run(layers, flat, shared, whole)
            return out.reshape(x.shape) if cut else out, kept, sown

        out, kept, sown = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=((specs, PartitionSpec(), per_layer), rows, *cuts),
            out_specs=(
                rows,
                PartitionSpec(None, *rows) if every else rows,
                PartitionSpec(None, BATCH),
            ),
            check_vma=False,
        )((params, keys, each), x, *shared)
        if cut:
            out = out[:, :places].reshape(-1, width)
            kept = jax.tree.map(lambda a: a[..., :places, :], kept)
        return out, kept, sown


def stacked(
    block: Callable[..., nn.Module],
    depth: int,
    *,
    scan: bool,
    remat: str,
    shared: tuple[str | None, ...] = (),
    per_layer: tuple[str | None, ...] = (),
) -> Callable[..., Stack]:
    """stacked(Block, depth, ...)(fields of the block, name=...) is their `Stack`."""

    def make(*fields: Any, name: str | None = None, **named: Any) -> Stack:
        make_block = functools.partial(block, *fields, **named, parent=None)
        return Stack(make_block, depth, scan, remat, shared, per_layer, name=name)

    return make


def check_taps(taps: Taps, depth: int) -> None:
    """Raise UsageError unless all taps are from 1 to `depth`."""
    for k in taps:
        if k not in range(1, depth + 1):
            raise invalid("taps", k, f"1 to {depth}, the number of blocks before the output")


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


def _part(kind: str | None, cut: bool) -> PartitionSpec:
    """How an array of "examples", "places" or "tokens" lies; cut: places are, along `sequence`."""
    along = ("sequence",) if cut else ()
    if kind is None:
        return PartitionSpec()
    return PartitionSpec(*{"examples": (BATCH,), "places": along, "tokens": (BATCH, *along)}[kind])


def _padded(tree: PyTree, spec: PartitionSpec, devices: int) -> PyTree:
    """Zeros appended along the axis that is cut along `sequence`, until `devices` divides it."""
    if "sequence" not in spec:
        return tree
    axis = tuple(spec).index("sequence")

    def padded(a: jax.Array) -> jax.Array:
        missing = -a.shape[axis] % devices
        return jnp.pad(a, [(0, missing if i == axis else 0) for i in range(a.ndim)])

    return jax.tree.map(padded, tree)


def _where(here: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, old)
