"""What a figure was measured on: the processor, its instruction sets, and versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}
"""Flags of /proc/cpuinfo, x86's and ARM's, and what they are called."""
PACKAGES = ("jax", "jaxlib", "numpy", "torch", "diffusers", "transformers", "torchgfn")


def _fields() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, {} where there is none."""
    if not CPUINFO.exists():
        return {}
    lines = CPUINFO.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """{"processor", "instruction_sets", "processors", "versions", "python"}.

    processors: (those that this process may use, those that there are).
    """
    fields = _fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1)
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": [name for flag, name in SETS.items() if flag in flags],
        "processors": [len(usable), os.cpu_count()],
        "versions": versions(),
        "python": platform.python_version(),
    }


def line() -> str:
    """The same in one line, to be printed above a table."""
    found = machine()
    sets = ", ".join(found["instruction_sets"]) or "instruction sets unknown"
    if "AVX2" in found["instruction_sets"] and "AVX-512" not in found["instruction_sets"]:
        sets += ", no AVX-512"
    usable, there = found["processors"]
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['processor']} ({sets}), {usable} of {there} processors; {packages}"
