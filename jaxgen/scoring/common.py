"""What the scorings of a model share: a half's images, parameters for one process, receipts."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import files
from jaxgen.data import Source, to_host
from jaxgen.errors import UsageError, invalid
from jaxgen.run.setup import Setup
from jaxgen.training.checkpoint import write_atomic

Check = Callable[[], None]
LONGEST = 32
"""Characters of a setting in a receipt's file name; of a longer one, a digest."""


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


def score_line(score: Mapping[str, Any]) -> str:
    """A score's value, interval and floor."""
    value = score["value"]
    line = value if isinstance(value, str) else f"{value:.6g}"
    if score.get("interval"):
        line += " [{:.4g}, {:.4g}]".format(*score["interval"])
    floor = score.get("floor")
    return line + (f"  (floor {floor:.4g})" if isinstance(floor, (int, float)) else "")


def receipt_name(base: str, differs: Mapping[str, Any]) -> str:
    """`base` and whatever was asked for that the run's config does not say, in a file's name.

    So a quick look never takes the place of the run's own receipt. None: as the config says.
    """
    words = [base]
    for key, value in differs.items():
        if value is not None:
            text = value if isinstance(value, str) else files.json_text(value, indent=None)
            short = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-")
            if len(short) > LONGEST:
                short = hashlib.sha256(text.encode()).hexdigest()[:8]
            words += [key, short]
    return "_".join(words)


def other(value: Any, usual: Any) -> Any:
    """`value` where it is not the usual one, else None: for `receipt_name`."""
    return None if value == usual else value


def receipts(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """A run's receipts with scores by name; of those for one sampler, that of the most samples.

    Smaller ones were quick looks; scores of different numbers of samples cannot be compared.
    """
    found = {}
    for path in sorted((Path(workdir) / "receipts").glob("*.json")):
        with contextlib.suppress(UsageError):
            receipt = files.read_json(path)
            if isinstance(receipt.get("scores"), list):
                found[path.stem] = receipt
    largest = most(found.values())
    return {name: each for name, each in found.items() if samples_of(each) == largest}


def samples_of(receipt: Mapping[str, Any]) -> int:
    """How many samples a receipt's scores are of; 0 where it does not say."""
    count = (receipt.get("samples") or {}).get("count")
    return count if isinstance(count, int) else 0


def most(receipts: Iterable[Mapping[str, Any]]) -> int:
    """The largest number of samples in any of them."""
    return max(map(samples_of, receipts), default=0)


def local(params: Any) -> Any:
    """Parameters for a program of this process alone."""
    return params if jax.process_count() == 1 else to_host(params)


def write(workdir: str | Path, name: str, content: Any) -> None:
    """Write `receipts/NAME.json`, whole or not at all."""
    write_atomic(Path(workdir) / "receipts" / f"{name}.json", files.json_text(content) + "\n")
