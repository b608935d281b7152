"""Every score of a model's samples, each beside its floor: the same score of the training half."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.data import Streamed
from jaxgen.errors import UsageError, invalid
from jaxgen.metrics.scores import memorisation
from jaxgen.metrics.scores.confusion import confusion
from jaxgen.metrics.scores.manifold import KINDS
from jaxgen.metrics.scores.table import Floor, Pair, Score, Side, check_names, chosen, compute
from jaxgen.metrics.sets.quantise import finite, quantise
from jaxgen.metrics.sets.reading import Set, of_bytes
from jaxgen.metrics.sets.side import Extractor, draws, side, source, title

Scores = dict[str, dict[str, Any]]
# These depend on the number of samples, and are also (or only) of as many as there are training
# images, so that value and floor can be put side by side.
MATCHED = tuple(KINDS)
MATCHED_SAYS = (
    "The Frechet distance of no more samples than there are training images, so that it can be put "
    "beside its floor."
)
# Left out unless asked for: the width of CMMD's kernel is for CLIP's features, and Vendi's score
# has no answer for features of length nought, which a rectified layer may give.
ASKED = ("cmmd", "vendi")


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Samples and both halves of the data, as bytes and as each extractor sees them.

    made, learnt, known: the finite samples, the training half, the test half. asked: how many
    samples there were, those that are not finite included. sides: (extractor, the same three); the
    first is the classifier.
    """

    made: Set
    learnt: Set
    known: Set
    asked: int
    sides: Sequence[tuple[Extractor, tuple[Side, Side, Side]]]

    @functools.cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance [n] in pixels of each of `made` to the nearest of `learnt`, and where it is."""
        return self._nearest[0]

    @functools.cached_property
    def fresh(self) -> np.ndarray:
        """The same distance [m] of each of `known`."""
        return self._nearest[1]

    @functools.cached_property
    def _nearest(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        made, learnt, known = self.made.images, self.learnt.images, self.known.images
        assert made is not None and learnt is not None and known is not None
        # Of both at once, so that the training half is read once.
        distance, place = memorisation.nearest_training(np.concatenate([made, known[:]]), learnt)
        return (distance[: len(made)], place[: len(made)]), distance[len(made) :]

    def describe(self) -> dict[str, Any]:
        """What was scored against what, for a receipt."""
        about = {"samples": self.made, "reference": self.known, "train": self.learnt}
        return {name: data.describe() for name, data in about.items()}


def look(
    samples: np.ndarray,
    labels: np.ndarray,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    classifier: Extractor,
    extractors: Sequence[Extractor] = (),
) -> Seen:
    """Features of samples [N, H, W, C] (uint8, or floats in [-1, 1]) made for labels [N].

    train, test: `image` and `label` of the two halves (`jaxgen.data.at_hand`), bytes or floats; all
    images are compared as bytes (`quantise`). classifier: an extractor that tells probabilities of
    classes. Raises UsageError for fewer than 2 finite samples and for shapes that differ.
    """
    if samples.shape[1:] != train["image"].shape[1:]:
        raise invalid("samples", samples.shape, f"images of shape {train['image'].shape[1:]}")
    if labels.shape != samples.shape[:1]:
        raise invalid("labels", labels.shape, f"one a sample: ({len(samples)},)")
    good = finite(samples)
    if good.sum() < 2:
        raise invalid("samples", f"{good.sum()} finite images", "2 or more")
    lost = int((~good).sum())
    made = of_bytes(quantise(samples[good]), labels[good], "samples", lost)
    learnt, known = (
        of_bytes(_bytes(half["image"]), half["label"], name)
        for name, half in (("train half", train), ("test half", test))
    )
    sides = [
        (e, (side(made, e, made.name), side(learnt, e, learnt.name), side(known, e, known.name)))
        for e in (classifier, *extractors)
    ]
    return Seen(made, learnt, known, len(samples), sides)


def _bytes(images: np.ndarray | Streamed) -> np.ndarray | Streamed:
    return images.converted(quantise) if isinstance(images, Streamed) else quantise(images)


def evaluate(
    seen: Seen,
    *,
    scores: Sequence[str] | None = None,
    intervals: int | None = None,
    seed: int = 0,
    left_out: dict[str, str] | None = None,
) -> Scores:
    """Every score of what `look` has seen: name -> {"value", "floor", "better", settings...}.

    For each extractor those of `feature_scores`. Beside them how often the classifier finds the
    label asked for, and how many samples are copies. Samples that are not finite count as wrong for
    the accuracy, are left out of the rest, and are reported as `nan_samples`. left_out: gets what
    cannot be had of so few images, with the reason; what was asked for by name is an error.
    """
    lost = seen.asked - len(seen.sides[0][1][0].features)
    results: Scores = {}
    for extractor, sides in seen.sides:
        results |= feature_scores(
            extractor, *sides, scores=scores, intervals=intervals, seed=seed, left_out=left_out
        )
    classifier, (made, _, known) = seen.sides[0]
    results["accuracy_classifier"] = _score(
        _right(made) / seen.asked,
        _right(known) / len(known.features),
        "higher",
        "How often an independent classifier finds the class that was asked for.",
        samples=seen.asked,
        floor_of="test half",
        also={"confusion": _confusion(made)},
        **source(classifier),
    )
    try:
        results["memorised_p1"] = _memorised(seen)
    except UsageError as error:
        if left_out is not None:
            left_out["memorised_p1"] = str(error)
    says = "How many samples have values that are no numbers."
    results["nan_samples"] = _score(lost, 0, "lower", says, samples=seen.asked)
    return results


def feature_scores(
    extractor: Extractor,
    made: Side,
    learnt: Side,
    known: Side,
    *,
    scores: Sequence[str] | None = None,
    intervals: int | None = None,
    seed: int = 0,
    left_out: dict[str, str] | None = None,
) -> Scores:
    """The scores of one extractor: `made` against `known`, and for floors `learnt` against `known`.

    scores: names of `jaxgen.metrics.scores.table.SCORES`; None: the core ones but `ASKED`.
    Distances take every sample, as published ones do; more samples than training images flatter
    them beside their floors, so there is `fid` of as many samples as training images too, named
    `_matched`. Precision, recall, density and coverage are of that many in any case: samples drawn
    by `seed` with every class's share kept. left_out: as in `evaluate`. intervals: see
    `table.compute`; None: where they take little.
    """
    size = min(len(made.features), len(learnt.features))
    whole = Pair(known, made, learnt, seed)
    # Fewer images mean a larger distance and another manifold: as many on both sides.
    few = Pair(known, _some(made, size, seed), _some(learnt, size, seed + 1), seed)
    names = [k for k in chosen(scores, whole) if scores is not None or k not in ASKED]
    if intervals is None:
        intervals = draws(whole)

    def scored(pair: Pair, names: Sequence[str]) -> Scores:
        def floor(score: Score) -> Floor:
            # A classifier knows its own training images, and copying is measured against them.
            if "probabilities" in score.needs or "train" in score.needs:
                return Floor(Pair(known, known, learnt, seed), "test half")
            return Floor(Pair(known, pair.learnt, learnt, seed), "train half")

        # What was asked for by name and cannot be had is an error.
        named = check_names(scores) not in (None, ["all"])
        missing: dict[str, str] = {}
        results = compute(
            pair, names, floor=floor, intervals=intervals, left_out=None if named else missing
        )
        if left_out is not None:
            count = len(pair.made.features)
            left_out.update({title(k, extractor, count): why for k, why in missing.items()})
        settings = {
            **source(extractor),
            "samples": len(pair.made.features),
            "reference": len(known.features),
            "seed": seed,
        }
        floors = {"floor_samples": len(pair.learnt.features)}
        return {k: v | settings | floors for k, v in results.items()}

    results = scored(whole, [k for k in names if k not in MATCHED])
    again = scored(few, [k for k in names if k in MATCHED or k == "fid"])
    if "fid" in again:
        again["fid"] |= {"says": MATCHED_SAYS}
    count = len(made.features)
    return {
        **{title(k, extractor, count): v for k, v in results.items()},
        **{
            title(k, extractor, count) + ("" if k in MATCHED else "_matched"): v
            for k, v in again.items()
        },
    }


def _some(data: Side, size: int, seed: int) -> Side:
    """`size` images, drawn so that every class keeps its share, as in a stratified split's halves.

    A draw without regard to class would add the spread of its class counts to every distance.
    """
    labels = data.labels
    assert labels is not None
    if size == len(labels):
        return data
    return data.rows(spread(labels, size, seed))


def spread(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Places int64 [size], rising, of labels [N], drawn so that every class keeps its share."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(np.argsort(place, kind="stable")[:size])


def _right(data: Side) -> int:
    """Images whose most probable class is their label."""
    assert data.probabilities is not None
    return int((data.probabilities.argmax(1) == data.labels).sum())


def _confusion(data: Side) -> list[list[int]]:
    assert data.probabilities is not None and data.labels is not None
    return confusion(data.labels, data.probabilities.argmax(1))


def _memorised(seen: Seen) -> dict[str, Any]:
    (near, _), fresh = seen.nearest, seen.fresh
    limit = memorisation.threshold(fresh)
    return _score(
        memorisation.memorised_share(near, limit),
        memorisation.memorised_share(fresh, limit),
        "lower",
        "The share of samples nearer to a training image than all but 1 % of fresh images are: "
        "about the floor where nothing is copied.",
        samples=len(near),
        threshold=limit,
        features="pixels in [-1, 1]",
        floor_of="test half",
    )


def _score(value: float, floor: float, better: str, says: str, **settings: Any) -> dict[str, Any]:
    return {"value": value, "floor": floor, "better": better, "says": says, **settings}
