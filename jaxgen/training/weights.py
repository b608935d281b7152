"""Parameters as safetensors: nested dicts of arrays in, bytes out, and back."""

from __future__ import annotations

import hashlib
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxgen import files
from jaxgen.data import to_host
from jaxgen.errors import UsageError

PyTree = Any

LAYOUT = "2"
"""Which layout of the networks' parameters this version writes and reads.

Raised when a network takes the same arrays in another order, which no shape tells. 2: a
transformer's query, key and value lie head by head.
"""


def layout_trouble(layout: str | None) -> str | None:
    """What is wrong with parameters of `layout` (None: written before it was), or None."""
    if (layout or "1") == LAYOUT:
        return None
    return f"written with layout {layout or '1'} of the parameters; this jaxgen reads {LAYOUT}"


def dump(params: PyTree, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of nested dicts of arrays, as bytes; names are joined by dots."""
    arrays = _arrays(params)
    return save(arrays, {**(metadata or {}), "layout": LAYOUT, "sha256": files.digest(arrays)})


def fingerprint(params: PyTree) -> str:
    """sha256 of parameters, as runs, codes and receipts record it."""
    return hashlib.sha256(save(_arrays(params), {"layout": LAYOUT})).hexdigest()


def _arrays(params: PyTree) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(to_host(params), sep=".")
    # Not `ascontiguousarray`, which makes an axis of a gain that has none.
    return {k: np.asarray(v, order="C") for k, v in flat.items()}


def read(path: files.Place) -> tuple[PyTree, dict[str, str]]:
    """(nested dict of arrays, metadata) of a file that `dump` made.

    Raises UsageError for a file that cannot be read, or whose arrays are not those written.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a whole safetensors file: {error}") from error
    if (trouble := layout_trouble(metadata.get("layout"))) is not None:
        raise UsageError(f"{path}: {trouble}")
    if metadata.pop("sha256", None) not in (None, files.digest(flat)):
        raise UsageError(f"{path}: damaged: its arrays are not those that were written")
    return flax.traverse_util.unflatten_dict(flat, sep="."), metadata
