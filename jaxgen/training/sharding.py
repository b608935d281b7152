"""The device mesh, and where parameters and batches lie on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import invalid

PyTree = Any


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh of all devices with axes `data` and `fsdp`; one of them may be -1 (what is left).

    The batch is cut along both axes, parameters along `fsdp` alone. Raises UsageError where the
    axes do not multiply to the number of devices.
    """
    devices = jax.devices()
    sizes = {"data": data, "fsdp": fsdp}
    free = [k for k, v in sizes.items() if v == -1]
    rest = int(np.prod([v for v in sizes.values() if v != -1]))
    if any(v == 0 or v < -1 for v in sizes.values()) or len(free) > 1:
        raise invalid("config.mesh", sizes, "sizes >= 1, at most one of them -1")
    if free and len(devices) % rest == 0:
        sizes[free[0]] = len(devices) // rest
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise invalid("config.mesh", {"data": data, "fsdp": fsdp}, f"{len(devices)} devices in all")
    return Mesh(np.asarray(devices).reshape(sizes["data"], sizes["fsdp"]), ("data", "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (axis 0) cut over every axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, abstract: PyTree) -> PyTree:
    """A sharding for each leaf: its largest axis that `fsdp` divides is cut, small ones are not.

    abstract: a pytree of shaped leaves. Leaves under 2^14 elements are replicated: gathering them
    would cost more than they take.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes: list[str | None] = [None] * len(leaf.shape)
        fits = [i for i, n in enumerate(leaf.shape) if n % size == 0]
        if size > 1 and fits and int(np.prod(leaf.shape)) >= 2**14:
            axes[max(fits, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, abstract)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raise UsageError unless every device gets the same number of examples per microbatch."""
    parts = mesh.size * accumulate
    if batch_size < 1 or batch_size % parts:
        raise invalid(
            "config.data.batch_size",
            batch_size,
            f"a multiple of {parts} ({mesh.size} devices x {accumulate} microbatches)",
        )
