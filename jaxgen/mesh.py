"""The device mesh in force: its axes, and what code that runs on one part of it has to know.

Two kinds of code see a mesh. What XLA partitions sees whole arrays, and finds the mesh by `layout`.
What runs by `shard_map` or `pmap` sees one device's part, and asks `size` and `position` of the
axes that cut it. A network works in both, because both answers are 1 and 0 where nothing is cut.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgen.errors import invalid

PyTree = Any

AXES = ("data", "fsdp", "tensor", "sequence")
"""Batches are cut along the first two, parameters along the second and third, places in an example
(tokens) along the last."""

BATCH = AXES[:2]
EXCHANGES = ("gather", "ring")
REDUCTIONS = (None, "float32", "bfloat16")
WAYS = ("jit", "shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and how blocks of transformers exchange on it.

    exchange: how queries meet the keys and values of other devices along `sequence`: "gather" (all
    at once) or "ring" (in turn, never more than one part of them in memory). reduce: the dtype in
    which gradients of blocks are summed over devices; None: as they come, that is in the compute
    dtype where weights are gathered (`fsdp`) and in the parameters' elsewhere. via: how the update
    is compiled: "jit", or "shard_map" or "pmap" for data parallelism alone.
    """

    mesh: Mesh
    exchange: str = "gather"
    reduce: str | None = None
    via: str = "jit"

    def __post_init__(self) -> None:
        """Raise UsageError for what there is not, and for what does not go together."""
        if self.exchange not in EXCHANGES:
            raise invalid("config.mesh.exchange", self.exchange, ", ".join(EXCHANGES))
        if self.reduce not in REDUCTIONS:
            raise invalid("config.mesh.reduce", self.reduce, ", ".join(map(str, REDUCTIONS)))
        if self.via not in WAYS:
            raise invalid("config.mesh.via", self.via, ", ".join(WAYS))
        if self.via != "jit" and self.mesh.shape["data"] != self.mesh.size:
            raise invalid("config.mesh.via", self.via, "jit, where not all devices are on `data`")


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)
_places: contextvars.ContextVar[int | None] = contextvars.ContextVar("places", default=None)


@contextlib.contextmanager
def using(layout: Layout | None) -> Iterator[None]:
    """Put a layout in force for the code traced within."""
    token = _layout.set(layout)
    try:
        with contextlib.ExitStack() as stack:
            if layout is not None and not any(_bound(axis) for axis in AXES):
                mesh = layout.mesh.abstract_mesh
                stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
            yield
    finally:
        _layout.reset(token)


def within(layout: Layout, fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, traced with the layout in force."""

    def call(*args: Any) -> Any:
        with using(layout):
            return fn(*args)

    return call


def layout() -> Layout | None:
    """The layout in force, for code that sees whole arrays on several devices; else None."""
    found = _layout.get()
    if found is None or found.mesh.size == 1 or any(_bound(axis) for axis in AXES):
        return None
    return found


def whole_examples(x: jax.Array) -> jax.Array:
    """x [B, ...] with every example whole on its devices, and so its gradient; for what XLA cuts.

    Convolutions need it between stacks that cut places: XLA computes wrong gradients of kernels
    where an image's rows are cut (JAX 0.10, 1x1x2x4).
    """
    found = layout()
    if found is None or len(x) % math.prod(found.mesh.shape[axis] for axis in BATCH):
        return x
    sharding = jax.sharding.NamedSharding(found.mesh, jax.sharding.PartitionSpec(BATCH))
    return jax.lax.with_sharding_constraint(x, sharding)


def exchange() -> str:
    """How keys and values are exchanged along `sequence`."""
    found = _layout.get()
    return "gather" if found is None else found.exchange


def size(*axes: str) -> int:
    """Into how many parts this code's arrays are cut along these axes together."""
    return math.prod(int(jax.lax.axis_size(axis)) for axis in axes if _bound(axis))


def position(*axes: str) -> int | jax.Array:
    """This device's number among those parts, the last axis counting fastest."""
    bound = tuple(axis for axis in axes if _bound(axis))
    return jax.lax.axis_index(bound) if bound else 0


def mean(tree: PyTree) -> PyTree:
    """The mean over devices along `data` of arrays that this code has for its own part."""
    return jax.lax.pmean(tree, "data") if size("data") > 1 else tree


def mean_gradient(tree: PyTree) -> PyTree:
    """`mean` in the layout's dtype for gradients; each leaf's own dtype out."""
    found = _layout.get()
    wide = None if found is None or size("data") == 1 else found.reduce
    if wide is None:
        return mean(tree)
    return jax.tree.map(lambda g: mean(g.astype(wide)).astype(g.dtype), tree)


@contextlib.contextmanager
def cut_places(total: int | None) -> Iterator[None]:
    """Code within holds a part of each example's `total` places; None: it holds all of them."""
    token = _places.set(total)
    try:
        yield
    finally:
        _places.reset(token)


def places() -> int | None:
    """How many places an example has in all, where this device holds a part of them."""
    return _places.get() if size("sequence") > 1 else None


def _bound(axis: str) -> bool:
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True
