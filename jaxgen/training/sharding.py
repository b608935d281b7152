"""The device mesh, and where parameters and batches lie on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import invalid

PyTree = Any


AXES = ("data", "fsdp", "tensor")

SMALLEST = 2**14
"""Elements below which a leaf is not cut: gathering it would cost more than it takes."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of all devices (or of those given); one of the axes may be -1 (what is left).

    The batch is cut along `data` and `fsdp`, parameters along `fsdp` and `tensor`. Raises
    UsageError where the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
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
    """Examples (axis 0) cut over `data` and `fsdp`; `tensor` devices see the same ones."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, abstract: PyTree) -> PyTree:
    """A sharding for each leaf: one axis, cut along `fsdp` and `tensor` together.

    The axis before the last (a kernel's inputs) where the devices divide it, else the largest that
    they divide; where no axis takes both meshes' axes, one of them. With two axes of a leaf cut,
    XLA has computed wrong gradients (JAX 0.10 to 0.12, batches cut as here). abstract: a pytree of
    shaped leaves. Leaves under `SMALLEST` elements are replicated.
    """

    def place(leaf: Any) -> NamedSharding:
        axes: list[Any] = [None] * len(leaf.shape)
        for names in (AXES[1:], AXES[1:2], AXES[2:]):
            size = math.prod(mesh.shape[name] for name in names)
            fits = [i for i, n in enumerate(leaf.shape) if n % size == 0]
            if size > 1 and fits and math.prod(leaf.shape) >= SMALLEST:
                inputs = len(leaf.shape) - 2
                axes[inputs if inputs in fits else max(fits, key=lambda i: leaf.shape[i])] = names
                break
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, abstract)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raise UsageError unless every device gets the same number of examples per microbatch."""
    devices = batch_devices(mesh)
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
        raise invalid(
            "config.data.batch_size",
            batch_size,
            f"a multiple of {parts} ({devices} devices x {accumulate} microbatches)",
        )
