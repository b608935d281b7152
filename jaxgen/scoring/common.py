"""What the scorings of a model share: a half's images, parameters for one process, receipts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.data import Source, to_host
from jaxgen.errors import invalid
from jaxgen.run.setup import Setup
from jaxgen.training.checkpoint import write_atomic

Check = Callable[[], None]


def part(setup: Setup, split: str, limit: int, seed: int) -> tuple[Source, np.ndarray]:
    """A half and the places in it: all, or a random part (sources are often sorted by class)."""
    if limit < 0:
        raise invalid("--limit", limit, "images >= 1, or 0 for all")
    if setup.spec.target is not None:
        raise invalid("config.data.source", "a target without examples", "a source with examples")
    source = setup.source if split == "train" else setup.test_source
    return source, np.random.default_rng(seed).permutation(len(source))[: limit or None]


def check_draws(intervals: int | None) -> None:
    """Refuse a number of random halves that no interval is from."""
    if intervals is not None and (intervals < 0 or intervals == 1):
        raise invalid("--intervals", intervals, "0, or 2 and more")


def local(params: Any) -> Any:
    """Parameters for a program of this process alone."""
    return params if jax.process_count() == 1 else to_host(params)


def write(workdir: str | Path, name: str, content: Any) -> None:
    """Write `receipts/NAME.json`, whole or not at all."""
    path = Path(workdir) / "receipts" / f"{name}.json"
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
