"""Receipts: a score together with everything one needs to know to compare it with another."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Mapping
from typing import Any

import jaxgen
from jaxgen.files import plain

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the scored samples were made.

    labels: the policy, "balanced" or "random"; None where nothing was sampled. nfe: network calls a
    sample, guidance branches included. guidance: the options of the guidance, or None. options:
    the other keywords of the sampler. ema: the name of the parameters. dtype: the network's compute
    dtype.
    """

    labels: str | None = None
    seed: int = 0
    solver: str | None = None
    steps: int = 0
    nfe: float = 0.0
    guidance: Any = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ema: str | None = None
    dtype: str = "float32"


def versions() -> dict[str, str]:
    """Versions of what computes the scores."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"jaxgen": jaxgen.__version__, "python": platform.python_version(), **packages}


def receipt(
    scores: Mapping[str, Mapping[str, Any]],
    sampling: Sampling,
    *,
    data: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A receipt that `json.dumps` takes: what `evaluate` found, and how it came about.

    scores: the result of `evaluate`: name -> value, floor, features and settings. data: what names
    the data set (its config section). extra: whatever else belongs to the run (images seen, config
    digest). Numbers that are not finite become the strings "nan", "inf" and "-inf".
    """
    entries = {
        "scores": [{"name": name, **score} for name, score in scores.items()],
        "sampling": dataclasses.asdict(sampling),
        "data": dict(data),
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **(extra or {}),
    }
    return plain(entries)
