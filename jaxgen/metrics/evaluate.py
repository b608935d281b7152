"""Every score of a set of samples, each beside its floor: the same score of the training half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics import memorisation
from jaxgen.metrics.classifier import Classifier
from jaxgen.metrics.frechet import frechet_distance, moments
from jaxgen.metrics.inception_score import inception_score, score_sums
from jaxgen.metrics.kernel import kid, kid_estimates
from jaxgen.metrics.manifold import KINDS
from jaxgen.metrics.quantise import finite, quantise
from jaxgen.metrics.table import Pair, Side

Scores = dict[str, dict[str, Any]]


class Extractor(Protocol):
    """What turns images uint8 [N, H, W, C] into features [N, d]; `Classifier` is one.

    name: a part of the scores' names ("classifier", "inception"). digest: of its weights.
    """

    @property
    def name(self) -> str:
        """A part of the scores' names."""
        ...

    @property
    def digest(self) -> str:
        """What tells two extractors of one name apart."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features [N, d] of images uint8 [N, H, W, C]."""
        ...


def evaluate(
    samples: np.ndarray,
    labels: np.ndarray,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    classifier: Classifier,
    *,
    extractors: Sequence[Extractor] = (),
    seed: int = 0,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
) -> Scores:
    """Score samples [N, H, W, C] (uint8, or floats in [-1, 1]) made for labels [N].

    train, test: `image` and `label` of the two halves (`jaxgen.data.whole`), bytes or floats; all
    images are compared as bytes (`quantise`). Returns name -> {"value", "floor", "better",
    "features", "digest", "samples", "reference", ...}, where the floor is the same score of the
    training half in place of the samples. All of these depend on the number of images: `fd_*` takes
    every sample, as published distances do (more samples than training images flatter it beside its
    floor); `fd_*_matched`, precision, recall, density and coverage take as many samples as there
    are training images, drawn by `seed` with every class's share kept. `extractors` add
    their own Frechet distance, KID, precision and so on, named after them. Samples that are not
    finite count as wrong for the accuracy, are left out of the rest, and are reported as
    `nan_samples`. Raises UsageError for too few samples and for shapes that differ.
    """
    if samples.shape[1:] != train["image"].shape[1:]:
        raise invalid("samples", samples.shape, f"images of shape {train['image'].shape[1:]}")
    if labels.shape != samples.shape[:1]:
        raise invalid("labels", labels.shape, f"one a sample: ({len(samples)},)")
    good = finite(samples)
    reals = {name: quantise(half["image"]) for name, half in (("train", train), ("test", test))}
    generated = quantise(samples[good])
    if len(generated) < 2:
        raise invalid("samples", f"{len(generated)} finite images", "2 or more")
    scores: Scores = {}
    lost = int((~good).sum())
    scores["nan_samples"] = _score(lost, 0, "lower", samples=len(samples))
    for extractor in (classifier, *extractors):
        scores |= feature_scores(
            extractor,
            generated,
            reals["train"],
            reals["test"],
            {"samples": labels[good], "train": train["label"]},
            seed=seed,
            kid_subsets=kid_subsets,
            kid_subset_size=kid_subset_size,
        )
    source = {"features": classifier.name, "digest": classifier.digest}
    predictions = {
        "samples": classifier.probabilities(generated),
        "test": classifier.probabilities(reals["test"]),
    }
    right = predictions["samples"].argmax(1) == labels[good]
    scores["accuracy_classifier"] = _score(
        float(right.sum() / len(samples)),
        float((predictions["test"].argmax(1) == test["label"]).mean()),
        "higher",
        samples=len(samples),
        floor_of="test half",
        **source,
    )
    scores["inception_score_classifier"] = _score(
        inception_score(score_sums(predictions["samples"])),
        inception_score(score_sums(predictions["test"])),
        "higher",
        samples=len(generated),
        splits=1,
        floor_of="test half",
        **source,
    )
    fresh = memorisation.train_distances(reals["test"], reals["train"])
    limit = memorisation.threshold(fresh)
    near = memorisation.train_distances(generated, reals["train"])
    scores["memorised_p1"] = _score(
        memorisation.memorised_share(near, limit),
        memorisation.memorised_share(fresh, limit),
        "lower",
        samples=len(generated),
        threshold=limit,
        features="pixels in [-1, 1]",
        floor_of="test half",
    )
    return scores


def feature_scores(
    extractor: Extractor,
    generated: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    labels: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
) -> Scores:
    """The scores of one extractor: generated against test, and for the floor train against test.

    All images uint8 [N, H, W, C]. labels: those of "samples" and "train". See `evaluate`.
    """
    sample_features = np.asarray(extractor.features(generated), np.float64)
    train_features = np.asarray(extractor.features(train), np.float64)
    real = np.asarray(extractor.features(test), np.float64)
    # As many on both sides: fewer images mean a larger distance and another manifold.
    size = min(len(sample_features), len(train_features))
    matched = {
        "value": _subset(sample_features, labels["samples"], size, seed),
        "floor": _subset(train_features, labels["train"], size, seed + 1),
    }
    if size <= 5 or len(real) <= 5:
        raise invalid("samples", size, "6 or more, and as many images in each half")
    known = Side(real)
    reference = known.moments
    value, floor = (Pair(known, Side(matched[kind])) for kind in ("value", "floor"))
    # KID is unbiased at any size, so nothing is left out.
    subset_size = min(kid_subset_size, size, len(real))
    kids = {
        kind: kid(
            kid_estimates(real, features, subsets=kid_subsets, subset_size=subset_size, seed=seed)
        )
        for kind, features in (("value", sample_features), ("floor", train_features))
    }
    suffix = "" if extractor.name == "classifier" else f"_{extractor.name}"
    common: dict[str, Any] = {
        "features": extractor.name,
        "digest": extractor.digest,
        "samples": size,
        "reference": len(real),
        "reference_of": "test half",
        "floor_of": "train half",
        "seed": seed,
    }

    return {
        # As published Frechet distances are: from every sample there is.
        f"fd_{extractor.name}": _score(
            frechet_distance(reference, moments(sample_features)),
            frechet_distance(reference, moments(train_features)),
            "lower",
            ddof=1,
            **{**common, "samples": len(sample_features), "floor_samples": len(train_features)},
        ),
        f"fd_{extractor.name}_matched": _score(
            frechet_distance(reference, value.made.moments),
            frechet_distance(reference, floor.made.moments),
            "lower",
            ddof=1,
            **common,
        ),
        f"kid_{extractor.name}": _score(
            kids["value"][0],
            kids["floor"][0],
            "lower",
            error=kids["value"][1],
            floor_error=kids["floor"][1],
            subsets=kid_subsets,
            subset_size=subset_size,
            **{**common, "samples": len(sample_features)},
        ),
        **{
            f"{kind}_k{k}{suffix}": _score(
                value.manifold[kind],
                floor.manifold[kind],
                "higher",
                k=k,
                strict=strict,
                **common,
            )
            for kind, (k, strict) in KINDS.items()
        },
    }


def _subset(features: np.ndarray, labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` rows, drawn so that every class keeps its share, as in a stratified split's halves.

    A draw without regard to class would add the spread of its class counts to every distance.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    chosen = np.argsort(place, kind="stable")[:size]
    return features[np.sort(chosen)]


def _score(value: float, floor: float, better: str, **settings: Any) -> dict[str, Any]:
    return {"value": value, "floor": floor, "better": better, **settings}
