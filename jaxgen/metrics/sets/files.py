"""Score samples that anyone made against any reference: no model of ours, no data set of ours."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.cautions import cautions
from jaxgen.metrics.extractors.classifier import train_classifier
from jaxgen.metrics.receipt import plain, versions
from jaxgen.metrics.scores.table import Floor, Pair, Score, Side, check_names, compute
from jaxgen.metrics.sets.reading import Set, aligned
from jaxgen.metrics.sets.side import DRAWS, Extractor, draws, side, source, title


def evaluate_sets(
    samples: Set,
    reference: Set,
    *,
    features: str | Extractor = "identity",
    scores: Sequence[str] | None = None,
    train: Set | None = None,
    intervals: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """A receipt of the scores of `samples` against `reference`.

    features: "identity" where the sets are features already, "classifier" for a small network
    trained on the reference's images and labels, or an extractor. scores: names of
    `jaxgen.metrics.scores.table.SCORES`; None: the core ones, "all" every one that the sets allow.
    train: what the generator learnt from: its own scores are the floors, and copying is measured
    against it (with the reference's for floors); None: the floors are those of one half of the
    reference against the other. intervals: see `table.compute`; None: 20 where that takes little,
    else none.

    The receipt's `scores` are {name: {"value", "better", "floor", "interval", convention...}}.
    Labels are matched by the names of their classes (`reading.aligned`).
    `fid` is so called for features of the standard Inception network of 50,000 images (`fid_10k`
    for 10,000) and for features that the user brings; of any other network it is `fd_NETWORK`.
    Raises UsageError for sets that do not go together and for too few images.
    """
    start = time.monotonic()
    if samples.moments is not None:
        raise invalid("--samples", f"{samples.name}: mu and sigma", "images or features")
    if samples.images is not None and reference.images is not None:
        _same_shape(samples, reference, train)
    samples = aligned(samples, reference, "--samples", say)
    train = None if train is None else aligned(train, reference, "--train", say)
    for data in (samples, reference, *(() if train is None else (train,))):
        for note in data.notes:
            say(note)
    extractor = _extractor(features, samples, reference, say)
    sides = [
        _side(s, option, extractor, say)
        for s, option in (
            (samples, "--samples"),
            (reference, "--reference"),
            *(() if train is None else ((train, "--train"),)),
        )
    ]
    made, known = sides[:2]
    learnt = sides[2] if train is not None else None
    pair = Pair(known, made, learnt, seed)
    halves = _halves(known, learnt, seed)

    def floor(score: Score) -> Floor | None:
        # What copying is measured against does not count as fresh.
        if train is None or learnt is None or "train" in score.needs:
            return halves
        return Floor(Pair(known, learnt, learnt, seed), f"{train.name}, {train.size} images")

    if intervals is None:
        intervals = draws(pair)
        if not intervals:
            say(f"no intervals for so many images unless asked: --intervals {DRAWS}")
    left_out: dict[str, str] = {}
    named = check_names(scores) not in (None, ["all"])
    results = compute(
        pair, scores, floor=floor, intervals=intervals, left_out=None if named else left_out
    )
    for name, why in left_out.items():
        say(f"left out: {title(name, extractor, samples.size)}: {why}")
    common: dict[str, Any] = {
        **source(extractor),
        "samples": samples.size,
        "reference": reference.size,
        "seed": seed,
    }
    return plain(
        {
            "scores": {title(k, extractor, samples.size): v | common for k, v in results.items()},
            "cautions": cautions(
                {title(k, extractor, samples.size): v for k, v in results.items()}
            ),
            "left_out": {title(k, extractor, samples.size): v for k, v in left_out.items()},
            "samples": samples.describe(),
            "reference": reference.describe(),
            "train": None if train is None else train.describe(),
            "versions": versions(),
            "seconds": time.monotonic() - start,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )


def _extractor(
    features: str | Extractor, samples: Set, reference: Set, say: Callable[[str], None]
) -> Extractor | None:
    """Who looks at images; None where the sets are features already."""
    if features == "identity":
        return None
    for option, data in (("--samples", samples), ("--reference", reference)):
        if data.features is not None:
            fix = "Features are scored by --features identity."
            raise invalid(option, f"{data.name}: features", "images", fix)
    if not isinstance(features, str):
        return features
    if features == "classifier":
        return _classifier(reference, say)
    raise invalid("--features", features, "identity, classifier or an extractor")


def _side(data: Set, option: str, extractor: Extractor | None, say: Callable[[str], None]) -> Side:
    name = f"{option} {data.name}"
    if data.moments is not None:
        return Side(None, known=data.moments, name=name)
    if extractor is None:
        if data.features is None:
            given = f"{data.name}: images {data.images.shape if data.images is not None else ''}"
            allowed = "arrays [N, d], which are the features themselves"
            raise invalid("--features", f"identity with {given}", allowed)
        return Side(data.features, data.labels, name=name)
    assert data.images is not None
    say(f"{extractor.name}: features of {len(data.images)} images of {data.name}")
    return side(data, extractor, name)


def _classifier(reference: Set, say: Callable[[str], None]) -> Extractor:
    labels = reference.labels
    if reference.images is None or labels is None or len(np.unique(labels)) < 2:
        kinds = "none" if labels is None else f"{len(np.unique(labels))} class"
        raise invalid(
            "--features",
            f"classifier with a reference of {kinds}",
            "a reference with labels of two classes or more (sub-folders, or labels in a .npz)",
        )
    say(f"training a classifier on {len(labels)} images of {reference.name}")
    results = train_classifier(reference.images, labels, int(labels.max()) + 1)
    # Not the one that a workdir's scores are by: another set of images, so other features.
    return dataclasses.replace(results, name="reference_classifier")


def _same_shape(samples: Set, reference: Set, train: Set | None) -> None:
    assert samples.images is not None and reference.images is not None
    for other in (samples, train):
        if other is None or other.images is None:
            continue
        if other.images.shape[1:] != reference.images.shape[1:]:
            given = f"{other.name} of {other.images.shape[1:]}"
            allowed = f"the reference's image shape {reference.images.shape[1:]}"
            option = "--samples" if other is samples else "--train"
            same = other.images.shape[1:3] == reference.images.shape[1:3]
            fix = "Channels can be made alike: --channels 3, for example."
            if not same:
                fix = "Sizes can be made alike: --image_size 64, for example."
            raise invalid(option, given, allowed, fix)


def _halves(known: Side, learnt: Side | None, seed: int) -> Floor | None:
    """One half of the reference against the other; None of moments alone."""
    if known.given is None or len(known.given) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(known.given))
    middle = len(order) // 2
    first, second = (np.sort(half) for half in (order[:middle], order[middle : 2 * middle]))
    pair = Pair(known.rows(first), known.rows(second), learnt, seed)
    return Floor(pair, f"one half of the reference against the other, {middle} images each")
