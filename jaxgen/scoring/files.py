"""Scores of what lies in files, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.data.pixels import BACKGROUND
from jaxgen.errors import UsageError, check_seed
from jaxgen.metrics import extractors
from jaxgen.metrics.scores.table import check_names
from jaxgen.metrics.sets import reading as sets
from jaxgen.metrics.sets.files import evaluate_sets
from jaxgen.metrics.sets.reading import Set
from jaxgen.metrics.sets.side import Extractor
from jaxgen.scoring.common import check_draws, score_line
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
    image_size: int | None = None,
    intervals: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of images or features in files, whoever made them: `metrics.files.evaluate_sets`.

    samples, reference, train, range, channels, background, image_size: see `metrics.sets.load`.
    features: the
    name of an extractor and its weights, "classifier" or "identity"; None: identity for arrays
    [N, d]; for images the standard Inception network if its weights are here, and otherwise a
    classifier trained on the reference's labels. out: a file for the receipt, too.
    """
    check_draws(intervals)
    check_seed("--seed", seed)
    check_names(scores)
    if out is not None:
        files.check_out("--out", out, (".json",))
    how: dict[str, Any] = dict(
        range=range, channels=channels, background=background, image_size=image_size
    )
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
    width = max(map(len, found["scores"]), default=0)
    for name, entry in found["scores"].items():
        say(f"{name:>{width}} {score_line(entry)}")
    for text in found["cautions"]:
        say(f"CAUTION: {text}")
    if out is not None:
        write_atomic(Path(out), files.json_text(found) + "\n")
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
