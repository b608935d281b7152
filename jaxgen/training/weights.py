"""Parameters as safetensors: nested dicts of arrays in, bytes out, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxgen.data import to_host
from jaxgen.errors import UsageError

PyTree = Any


def dump(params: PyTree, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of nested dicts of arrays, as bytes; names are joined by dots."""
    flat = flax.traverse_util.flatten_dict(to_host(params), sep=".")
    return save({k: np.ascontiguousarray(v) for k, v in flat.items()}, metadata)


def read(path: str | Path) -> tuple[PyTree, dict[str, str]]:
    """(nested dict of arrays, metadata) of a safetensors file. Raises UsageError if unreadable."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a whole safetensors file: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="."), metadata
