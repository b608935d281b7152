"""Which implementation is used where none is named: what was measured, else what is known.

The choice depends on the device and the shapes alone, so that all hosts of a pod choose alike and
a program compiled again is the same program. Nothing is timed here: `measured.json` holds what
`python -m experiments.benchmarks.attention --write` found, by device kind and shape class.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

import jax
from jax.sharding import AxisType

from jaxgen.errors import invalid
from jaxgen.ops.kernel import interpreting
from jaxgen.ops.masks import Mask

PLATFORM = {"pallas_tpu": "tpu", "pallas_gpu": "gpu", "cudnn": "gpu"}
"""The platform that a kernel needs."""


@functools.cache
def measured() -> dict[str, dict[str, str]]:
    """Device kind -> shape class -> the implementation that was fastest."""
    table: dict[str, dict[str, str]] = json.loads(
        resources.files("jaxgen.ops").joinpath("measured.json").read_text()
    )
    return table


def device() -> tuple[str, str]:
    """Platform and kind of the devices that the program being traced is for.

    Those of the mesh in force, which need not be this machine's; else the default device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    there: Any = None if mesh.empty else mesh.abstract_device
    if there is None:
        there = getattr(jax.config, "jax_default_device", None)
        if there is None or isinstance(there, str):
            there = jax.devices(there)[0]
    platform = "gpu" if there.platform in ("cuda", "rocm") else there.platform
    return platform, there.device_kind


def demand(name: str) -> None:
    """Raise UsageError where a kernel's platform is not the one that the program is for."""
    platform, kind = device()
    if platform != PLATFORM[name] and not interpreting():
        allowed = f"what runs on {kind} ({platform}); {name} runs on {PLATFORM[name]}"
        raise invalid("attention.implementation", name, allowed)


def alone() -> bool:
    """Whether a kernel may be called: XLA cannot cut one over devices, but `shard_map` has."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return all(
        kind == AxisType.Manual or size == 1
        for kind, size in zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    )


def shape_class(what: str, dtype: Any, rows: int, columns: int, size: int, mask: Any) -> str:
    """What is taken to be equally fast: lengths count up to the next power of two."""
    rows, columns = (1 << max(each - 1, 0).bit_length() for each in (rows, columns))
    name = "Full" if mask is None else type(mask).__name__
    return f"{what} {dtype} {rows}x{columns} of {size} {name}"


def of_heads(q: jax.Array, k: jax.Array, mask: Any, *, cudnn: bool) -> str:
    """The implementation of `attention` for these arguments; cudnn: whether it takes them."""
    if not (mask is None or isinstance(mask, Mask)) or str(q.dtype) not in ("float32", "bfloat16"):
        return "xla"
    key = shape_class("heads", q.dtype, q.shape[2], k.shape[2], q.shape[3], mask)
    return _choose(key, cudnn=cudnn)


def of_tokens(qkv: jax.Array, size: int, mask: Mask | None, fits: bool) -> str:
    """The implementation of `fused_attention` for these arguments.

    fits: whether its own kernel takes them. "auto": the parts around what `of_heads` says.
    """
    (platform, kind), tokens = device(), qkv.shape[1]
    key = shape_class("tokens", qkv.dtype, tokens, tokens, size, mask)
    best = measured().get(kind, {}).get(key, "pallas_tpu" if platform == "tpu" else "auto")
    possible = best not in PLATFORM or (PLATFORM[best] == platform and alone())
    return best if possible and (best != "pallas_tpu" or fits) else "auto"


def _choose(key: str, *, cudnn: bool) -> str:
    platform, kind = device()
    # Not measured: on a TPU what moves least, which never writes scores; elsewhere XLA's.
    best = measured().get(kind, {}).get(key, "pallas_tpu" if platform == "tpu" else "xla")
    if best in PLATFORM and (PLATFORM[best] != platform or not alone()):
        return "xla"
    return "xla" if best == "cudnn" and not cudnn else best
