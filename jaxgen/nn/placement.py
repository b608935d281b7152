"""Where the parameters of a network lie on a mesh: a short list of (regex, tactic) and a default.

Names are dotted paths, of parameters and of what follows them (optimizer state, averages). Kernels
of transformer blocks (stacks whose name ends in "blocks") are cut along `tensor` as their layers
compute, and so are experts, whole; everything large is cut along `fsdp` for storage alone, and
gathered where it is used.
"""

from __future__ import annotations

import math
import re

from jax.sharding import Mesh, PartitionSpec

from jaxgen.mesh import BATCH

COLUMNS, ROWS, EXPERTS = "columns", "rows", "experts"

TACTICS = (
    (r"blocks\.experts\.\w+\.(kernel|bias)$", EXPERTS),
    (r"blocks\.(qkv|gate|value|expand|linear_qkv|depthwise)\.(kernel|bias)$", COLUMNS),
    (r"blocks\.(time_qkv|relative)\.(kernel|bias)$", COLUMNS),
    (r"blocks\.(proj|contract|linear_proj)\.kernel$", ROWS),
    (r"blocks\.proj\.generator$", ROWS),
    (r"blocks\.(forward|backward)\.(widen\.kernel|filter|bias|step|log_decay|direct)$", COLUMNS),
    (r"blocks\.(forward|backward)\.narrow\.kernel$", ROWS),
)
"""The first that matches decides. Columns: the last axis along `tensor`; rows: the last but one;
experts: the one after the layers'."""

STACKED = re.compile(r"(blocks|\bstack)\.")
"""Parameters of a stack of layers: axis 0 is the layer's and stays whole."""

NARROW = re.compile(r"blocks\..*\bkernel$")
"""Parameters that layers use in their compute dtype, and that devices exchange in it."""

EXAMPLES = re.compile(r"\breplay\.rows\b")
"""Buffers of examples in the state: cut along their rows, as a batch is."""

SMALLEST = 2**14
"""Elements below which a leaf is not cut for storage: gathering it would cost more than it
takes."""


def tactic(name: str) -> str | None:
    """The tactic for a parameter's dotted name, or None: the default."""
    return next((kind for pattern, kind in TACTICS if re.search(pattern, name)), None)


def tensor_axis(name: str, shape: tuple[int, ...], devices: int) -> int | None:
    """The axis that the tactic cuts among `devices`, or None where it cuts none."""
    kind = tactic(name)
    axis = 1 if kind == EXPERTS else len(shape) - (2 if kind == ROWS else 1)
    return None if kind is None or devices == 1 or shape[axis] % devices else axis


def placement(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How a leaf lies on the mesh.

    What a tactic cuts along `tensor` is cut so. Then the inputs' axis (the last but one) is cut
    along `fsdp` where it divides, else the largest axis that does; leaves without a tactic along
    `fsdp` and `tensor` together. Leaves under `SMALLEST` elements are replicated.
    """
    axes: list[tuple[str, ...]] = [()] * len(shape)
    if math.prod(shape) < SMALLEST:
        return PartitionSpec()
    if EXAMPLES.search(name):
        whole = shape[0] % math.prod(mesh.shape[axis] for axis in BATCH)
        return PartitionSpec() if whole else PartitionSpec(BATCH)
    tensor = tensor_axis(name, shape, mesh.shape["tensor"])
    if tensor is not None:
        axes[tensor] = ("tensor",)
    first = 1 if STACKED.search(name) else 0
    choices = (("fsdp", "tensor"), ("fsdp",), ("tensor",)) if tensor is None else (("fsdp",),)
    for names in choices:
        devices = math.prod(mesh.shape[axis] for axis in names)
        fits = [
            i
            for i in range(first, len(shape))
            if shape[i] % (devices * math.prod(mesh.shape[axis] for axis in axes[i])) == 0
        ]
        if devices > 1 and fits:
            inputs = len(shape) - 2
            chosen = inputs if inputs in fits else max(fits, key=lambda i: shape[i])
            axes[chosen] += names
            break
    return PartitionSpec(*(names or None for names in axes))
