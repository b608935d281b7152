"""Chips, topologies, and the process in which libtpu compiles."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxgen.errors import UsageError, invalid
from jaxgen.training.peak import PEAKS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: bfloat16 FLOP/s, bytes of memory, its bytes/s, bytes/s out over the wires."""

    flops: float
    memory: float
    bandwidth: float
    wire: float


# Google Cloud's documentation of each version: bf16 peak, HBM capacity and bandwidth, interconnect
# bandwidth out of a chip (1600 Gbps on v5e, 4800 on v5p; on v6e 3584, 3200 in later versions of the
# page; v4's two bandwidths are from memory). A JAX device is half a chip on v4, whose topologies in
# libtpu list two cores a chip.
CHIPS = {
    "v4": Chip(PEAKS["TPU v4"] / 2, 16 * 2**30, 1.228e12 / 2, 300e9 / 2),
    "v5e": Chip(PEAKS["TPU v5e"], 16 * 2**30, 0.819e12, 200e9),
    "v5p": Chip(PEAKS["TPU v5p"], 95 * 2**30, 2.765e12, 600e9),
    "v6e": Chip(PEAKS["TPU v6e"], 32 * 2**30, 1.64e12, 448e9),
}
QUIET = {
    # Else libtpu asks a metadata server about the TPU that this machine is not.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


def split(topology: str) -> tuple[str, str]:
    """ "v5e:8x8" as ("v5e", "8x8"). Raises UsageError for another chip or no shape."""
    name, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if name not in (*CHIPS, "cpu") or not all(s.isdigit() and int(s) for s in sizes):
        raise invalid(
            "--topology", topology, f"CHIP:SHAPE with CHIP one of {', '.join(CHIPS)}, as v5e:8x8, "
            "or cpu:NUMBER"
        )  # fmt: skip
    return name, shape


def environment(topology: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that compiles for a topology."""
    name, shape = split(topology)
    kept = {k: v for k, v in base.items() if not k.startswith(("TPU_", "LIBTPU_"))}
    if name == "cpu":
        flag = f"--xla_force_host_platform_device_count={shape}"
        kept["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {flag}".strip()
    return {**kept, **QUIET}


def devices_of(topology: str) -> tuple[list[Any], Chip | None]:
    """The devices of a topology, to compile for, and their chip (None: a CPU's peaks are unknown).

    Raises UsageError where libtpu is not installed, does not know the topology, or this process
    has fewer CPU devices than asked for.
    """
    name, shape = split(topology)
    if name == "cpu":
        there = jax.devices("cpu")
        if len(there) < int(shape):
            raise invalid("--topology", topology, f"at most cpu:{len(there)} in this process")
        return there[: int(shape)], None
    from jax.experimental import topologies

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu reports what it does not know by many types
        text = str(error).strip().splitlines()[0][:300]
        raise UsageError(
            f"--topology: {topology} cannot be compiled for: {text} (is libtpu installed? "
            "pip install libtpu; shapes are the product's own, as v5e:2x2, 4x4, 8x8, 16x16)"
        ) from error
    return list(description.devices), CHIPS[name]
