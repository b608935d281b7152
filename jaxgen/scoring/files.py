"""Scores of what lies in files, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.data.pixels import BACKGROUND
from jaxgen.errors import UsageError, invalid
from jaxgen.metrics import extractors
from jaxgen.metrics.sets import reading as sets
from jaxgen.metrics.sets.files import evaluate_sets
from jaxgen.metrics.sets.reading import Set
from jaxgen.metrics.sets.side import Extractor
from jaxgen.scoring.common import check_draws
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import say


def evaluate_files(
    samples: str | Path,
    reference: str | Path,
    *,
    train: str | Path | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    scores: Sequence[str] | None = None,
    range: str | None = None,
    channels: int | None = None,
    background: Any = BACKGROUND,
    intervals: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of images or features in files, whoever made them: `metrics.files.evaluate_sets`.

    samples, reference, train, range, channels, background: see `metrics.sets.load`. features: the
    name of an extractor and its weights, "classifier" or "identity"; None: identity for arrays
    [N, d]; for images the standard Inception network if its weights are here, and otherwise a
    classifier trained on the reference's labels. out: a file for the receipt, too.
    """
    check_draws(intervals)
    if out is not None and Path(out).suffix != ".json":
        raise invalid("--out", str(out), "a name that ends in .json")
    how: dict[str, Any] = dict(range=range, channels=channels, background=background)
    made = sets.load(samples, option="--samples", **how)
    known = sets.load(reference, option="--reference", **how)
    learnt = None if train is None else sets.load(train, option="--train", **how)
    asked = _extractor(features, weights, made, known)
    found = evaluate_sets(
        made,
        known,
        features=asked,
        scores=scores,
        train=learnt,
        intervals=intervals,
        seed=seed,
        say=say,
    )
    for name, entry in found["scores"].items():
        say(f"{name:>24} {score_line(entry)}")
    if out is not None:
        write_atomic(Path(out), json.dumps(found, indent=2, sort_keys=True) + "\n")
    return found


def _extractor(
    features: str | None, weights: str | Path | None, samples: Set, reference: Set
) -> str | Extractor:
    if features in ("identity", "classifier"):
        return features
    if features is None:
        if samples.images is None:
            return "identity"
        try:
            return extractors.load("inception", weights)
        except UsageError:
            if weights is not None or reference.labels is None:
                raise
            say("no weights of the Inception network here: a classifier of the reference instead")
            return "classifier"
    return extractors.load(features, weights)


def score_line(score: Mapping[str, Any]) -> str:
    """A score of `evaluate_files`: value, interval and floor."""
    line = f"{score['value']:.6g}"
    if score.get("interval"):
        line += " [{:.4g}, {:.4g}]".format(*score["interval"])
    return line + ("" if score["floor"] is None else f"  (floor {score['floor']:.4g})")
