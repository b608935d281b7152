"""The device mesh, and where parameters and batches lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.data import to_global
from jaxgen.errors import invalid
from jaxgen.mesh import AXES, BATCH, Layout
from jaxgen.method import Method
from jaxgen.nn.placement import placement

PyTree = Any


def make_layout(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    exchange: str = "gather",
    reduce: str | None = None,
    via: str = "jit",
    *,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """The `Layout` that `config.mesh` describes; the sizes as `make_mesh`, the rest its fields."""
    mesh = make_mesh(data, fsdp, tensor, sequence, devices=devices)
    return Layout(mesh, exchange=exchange, reduce=reduce, via=via)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of all devices (or of those given); one of the axes may be -1 (what is left).

    The batch is cut along `data` and `fsdp`, parameters along `fsdp` and `tensor`, tokens along
    `sequence`. Raises UsageError where the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
    given = dict(sizes)
    free = [k for k, v in sizes.items() if v == -1]
    rest = int(np.prod([v for v in sizes.values() if v != -1]))
    if any(v == 0 or v < -1 for v in sizes.values()) or len(free) > 1:
        raise invalid("config.mesh", given, "sizes >= 1, at most one of them -1")
    if free and len(devices) % rest == 0:
        sizes[free[0]] = len(devices) // rest
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise invalid("config.mesh", given, f"{len(devices)} devices in all")
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES)


def batch_devices(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (axis 0) cut over `data` and `fsdp`; devices of the other axes see the same ones."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, abstract: PyTree) -> PyTree:
    """A sharding for each leaf of a pytree of shaped leaves, by `nn.placement`."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, placement(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)


def place_frozen(method: Method, mesh: Mesh) -> PyTree:
    """The method's frozen arrays on the mesh, as parameters of their names would lie."""
    frozen = {"frozen": method.frozen}
    return jax.tree.map(to_global, frozen, state_sharding(mesh, frozen))["frozen"]


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raise UsageError unless every device gets the same number of examples per microbatch."""
    devices = batch_devices(mesh)
    shares = devices * accumulate
    if batch_size < 1 or batch_size % shares:
        raise invalid(
            "config.data.batch_size",
            batch_size,
            f"a multiple of {shares} ({devices} devices x {accumulate} microbatches)",
        )
