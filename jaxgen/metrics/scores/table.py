"""The table of scores of two sets of features: one entry a score, found by its name.

A score is a function of a `Pair`, which makes each statistic once however many scores ask for it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.metrics.scores.authenticity import authenticity
from jaxgen.metrics.scores.classwise import class_moments, classwise_frechet
from jaxgen.metrics.scores.copying import copying_statistic
from jaxgen.metrics.scores.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.scores.inception_score import (
    inception_score_splits,
    label_information,
    score_sums,
)
from jaxgen.metrics.scores.infinity import fd_infinity
from jaxgen.metrics.scores.kernel import kid, kid_estimates, polynomial_mmd, rbf_mmd, rbf_sums
from jaxgen.metrics.scores.likelihood_divergence import likelihood_divergence
from jaxgen.metrics.scores.manifold import COMPLEMENTS, KINDS, Manifold, manifolds
from jaxgen.metrics.scores.manifold import scores as manifold_scores
from jaxgen.metrics.scores.mauve import histograms, mauve
from jaxgen.metrics.scores.sliced import directions, projections, sliced_wasserstein
from jaxgen.metrics.scores.vendi import spectrum, vendi_score


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One set: features [N, d], or their moments alone (`known`); labels [N] where there are some.

    spatial: [N, e], of a network that keeps places apart. probabilities: [N, C], of one that tells
    classes. name: what messages call it.
    """

    given: np.ndarray | None
    labels: np.ndarray | None = None
    known: Moments | None = None
    name: str = "features"
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Features of an image."""
        return len(self.moments.mean) if self.given is None else self.given.shape[1]

    @property
    def features(self) -> np.ndarray:
        """Features [N, d]; UsageError where only their moments are known."""
        if self.given is None:
            raise invalid(
                self.name, "mu and sigma alone", "images or features", "Only fid needs no more."
            )
        return self.given

    @functools.cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return moments(self.features) if self.known is None else self.known

    @functools.cached_property
    def manifolds(self) -> dict[int, Manifold]:
        """Balls to the 3rd and to the 5th neighbour."""
        need = max(k for k, _ in KINDS.values()) + 1
        if len(self.features) < need:
            given = f"{len(self.features)} images"
            raise invalid(self.name, given, f"{need} or more for precision, recall and the like")
        return manifolds(self.features, sorted({k for k, _ in KINDS.values()}))

    @functools.cached_property
    def rbf(self) -> Any:
        """Sums of CMMD's kernel within the set."""
        return rbf_sums(self.features, self.features, sigma=CMMD_SIGMA)

    def half(self, chance: np.random.Generator) -> Side:
        """A random half, without replacement; of moments, themselves."""
        if self.given is None:
            return self
        return self.rows(np.sort(chance.permutation(len(self.given))[: len(self.given) // 2]))

    def rows(self, chosen: np.ndarray) -> Side:
        """Some of the images."""
        arrays = (self.given, self.labels, self.spatial, self.probabilities)
        given, labels, spatial, p = (None if a is None else a[chosen] for a in arrays)
        return Side(given, labels, None, self.name, spatial, p)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What is compared: `real` is the reference, `made` the samples. seed: of what is drawn.

    train: what the generator learnt from, where copying is asked about.
    """

    real: Side
    made: Side
    train: Side | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse features of different widths."""
        sides = [self.real, self.made, *(() if self.train is None else (self.train,))]
        if len({side.width for side in sides}) > 1:
            given = ", ".join(f"{side.width} in {side.name}" for side in sides)
            raise invalid("features", given, "the same number on both sides")

    @property
    def learnt(self) -> Side:
        """`train`; UsageError where there is none."""
        if self.train is None:
            raise invalid("--train", None, "the images that the generator was trained on")
        return self.train

    @functools.cached_property
    def manifold(self) -> dict[str, float]:
        """Precision, recall, density, coverage and the complements from one pass."""
        kinds = {**KINDS, **COMPLEMENTS}
        return manifold_scores(self.real.manifolds, self.made.manifolds, kinds)

    def has(self, needs: Iterable[str]) -> bool:
        """Whether there is what a score needs: "features", "labels", "train" and so on."""
        sides = (self.real, self.made)
        there = {
            "features": all(side.given is not None for side in sides),
            "labels": all(side.labels is not None for side in sides),
            "spatial": all(side.spatial is not None for side in sides),
            "probabilities": self.made.probabilities is not None,
            "train": self.train is not None,
        }
        return all(there[need] for need in needs)

    def half(self, chance: np.random.Generator) -> Pair:
        """Halves of all sides."""
        train = None if self.train is None else self.train.half(chance)
        return Pair(self.real.half(chance), self.made.half(chance), train, self.seed)


CMMD_SIGMA = 10.0
KID_SUBSETS, KID_SIZE = 100, 1000
CELLS = 3
SPLITS = 10


class Score(NamedTuple):
    """value: Pair -> {"value", settings of its own, "also": what else it found}.

    better: "lower", "higher" or "zero". says: what the value tells, a sentence for a reader who
    does not know the score. settings: the convention. limits: the least and the largest value there
    can be. core: computed unless others are asked for. needs: see `Pair.has`.
    """

    value: Callable[[Pair], Mapping[str, Any]]
    better: str
    says: str
    settings: Mapping[str, Any]
    limits: tuple[float, float] = (-np.inf, np.inf)
    core: bool = True
    needs: frozenset[str] = frozenset({"features"})


def _fid(pair: Pair) -> Mapping[str, Any]:
    return {"value": frechet_distance(pair.real.moments, pair.made.moments)}


def _kid(pair: Pair) -> Mapping[str, Any]:
    real, made = pair.real.features, pair.made.features
    if max(len(real), len(made)) <= KID_SIZE:
        return {"value": polynomial_mmd(real, made), "subsets": 1, "subset_size": "all"}
    size = min(KID_SIZE, len(real), len(made))
    estimates = kid_estimates(real, made, subsets=KID_SUBSETS, subset_size=size, seed=pair.seed)
    value, error = kid(estimates)
    return {"value": value, "error": error, "subsets": KID_SUBSETS, "subset_size": size}


def _cmmd(pair: Pair) -> Mapping[str, Any]:
    cross = rbf_sums(pair.real.features, pair.made.features, sigma=CMMD_SIGMA)
    return {"value": rbf_mmd(pair.real.rbf, pair.made.rbf, cross)}


_SAYS = {
    "precision": "The share of samples that lie among real images: how good single samples are.",
    "recall": "The share of real images that lie among samples: how much of the variety is there.",
    "density": "In how many neighbourhoods of real images a sample lies, on average; about 1 for "
    "real images.",
    "coverage": "The share of real images with a sample in their neighbourhood.",
}


def _manifold(kind: str) -> Score:
    k, strict = KINDS[kind]
    most = np.inf if kind == "density" else 1.0
    value = lambda pair: {"value": pair.manifold[kind]}
    return Score(value, "higher", _SAYS[kind], {"k": k, "strict": strict}, (0.0, most))


def _symmetric(kind: str) -> Score:
    k, strict = KINDS[kind]
    value = lambda pair: {"value": min(pair.manifold[kind], pair.manifold[f"complement_{kind}"])}
    says = f"The lower of {kind} and of the same asked from the other set's side."
    return Score(value, "higher", says, {"k": k, "strict": strict}, (0.0, 1.0), core=False)


def _vendi(pair: Pair) -> Mapping[str, Any]:
    """Of the samples alone; the reference's beside it."""
    value = vendi_score(spectrum(pair.made.features))
    reference = vendi_score(spectrum(pair.real.features))
    return {"value": value, "also": {"of_reference": reference}}


def _sfid(pair: Pair) -> Mapping[str, Any]:
    sides = [moments(side.spatial) for side in (pair.real, pair.made) if side.spatial is not None]
    return {"value": frechet_distance(*sides)}


def _inception_score(pair: Pair) -> Mapping[str, Any]:
    """As published: the mean of splits in a shuffled order. The score of the whole set beside it.

    Splits hold fewer images, so their scores are lower (Barratt & Sharma 2018).
    """
    p = pair.made.probabilities
    assert p is not None
    value, deviation = inception_score_splits(p, splits=SPLITS, seed=pair.seed)
    information = label_information(score_sums(p))
    also = {"deviation": deviation, "whole": np.exp(information), "information": information}
    return {"value": value, "also": also}


def _fid_infinity(pair: Pair) -> Mapping[str, Any]:
    fit = fd_infinity(pair.real.moments, pair.made.features, seed=pair.seed)
    return {"value": fit.value, "also": {"slope": fit.slope, "sizes": fit.sizes}}


def _classwise(pair: Pair) -> Mapping[str, Any]:
    sides = ((side.features, side.labels) for side in (pair.real, pair.made))
    distances = classwise_frechet(*(class_moments(f, y) for f, y in sides if y is not None))
    return {"value": distances.mean, "also": {"classes": distances.values}}


def _sliced(pair: Pair) -> Mapping[str, Any]:
    along = directions(pair.made.width, seed=pair.seed)
    value = sliced_wasserstein(
        projections(pair.real.features, along), projections(pair.made.features, along)
    )
    return {"value": value, "directions": len(along)}


def _mauve(pair: Pair) -> Mapping[str, Any]:
    p, q = histograms(pair.real.features, pair.made.features, seed=pair.seed)
    return {"value": mauve(p, q), "bins": len(p)}


def _authenticity(pair: Pair) -> Mapping[str, Any]:
    return {"value": authenticity(pair.learnt.features, pair.made.features)}


def _copying(pair: Pair) -> Mapping[str, Any]:
    features = (side.features for side in (pair.learnt, pair.real, pair.made))
    return {"value": copying_statistic(*features, cells=CELLS, seed=pair.seed)}


def _divergence(pair: Pair) -> Mapping[str, Any]:
    features = (side.features for side in (pair.learnt, pair.real, pair.made))
    return {"value": likelihood_divergence(*features, seed=pair.seed)}


_TRAIN = frozenset({"features", "train"})
SCORES: dict[str, Score] = {
    "fid": Score(
        _fid,
        "lower",
        "The distance between samples and real images as a network sees them, means and spread: "
        "quality and variety in one number.",
        {"ddof": 1},
        (0.0, np.inf),
        needs=frozenset(),
    ),
    "kid": Score(
        _kid,
        "lower",
        "A distance like the Frechet distance whose expectation does not depend on the number of "
        "samples; about 0 for real images, by chance below.",
        {"degree": 3},
    ),
    **{f"{kind}_k{k}": _manifold(kind) for kind, (k, _) in KINDS.items()},
    "cmmd": Score(
        _cmmd,
        "lower",
        "A distance between samples and real images that supposes no shape of either set.",
        {"sigma": CMMD_SIGMA, "scale": 1000, "estimator": "biased"},
        (0.0, np.inf),
    ),
    "vendi": Score(
        _vendi,
        "higher",
        "How many clearly different images the samples amount to.",
        {"kernel": "cosine", "order": 1},
        (1.0, np.inf),
    ),
    "sfid": Score(
        _sfid,
        "lower",
        "The Frechet distance of features that keep places apart: whether parts are where they "
        "belong.",
        {"ddof": 1},
        (0.0, np.inf),
        needs=frozenset({"features", "spatial"}),
    ),
    "inception_score": Score(
        _inception_score,
        "higher",
        "How sure a classifier is of single samples while the classes are even over all of them; "
        "at most the number of classes.",
        {"splits": SPLITS, "order": "shuffled", "ddof": 0},
        (1.0, np.inf),
        needs=frozenset({"probabilities"}),
    ),
    **{f"symmetric_{kind}_k3": _symmetric(kind) for kind in ("precision", "recall")},
    "fid_infinity": Score(
        _fid_infinity,
        "lower",
        "The Frechet distance that infinitely many samples would have, by extrapolation.",
        {"ddof": 1},
        core=False,
    ),
    "fid_classwise": Score(
        _classwise,
        "lower",
        "The Frechet distance within each class, on average over classes.",
        {"ddof": 1},
        (0.0, np.inf),
        core=False,
        needs=frozenset({"features", "labels"}),
    ),
    "sliced_wasserstein": Score(
        _sliced,
        "lower",
        "How far features have to be moved to turn samples into real images, along random "
        "directions.",
        {"p": 2},
        (0.0, np.inf),
        core=False,
    ),
    "mauve": Score(
        _mauve,
        "higher",
        "How alike the shares of samples and of real images are in groups of alike images; 1 where "
        "they are the same.",
        {"scale": 5},
        (0.0, 1.0),
        core=False,
    ),
    "authenticity": Score(
        _authenticity,
        "higher",
        "The share of samples that are no close copy of a training image, whatever their quality.",
        {},
        (0.0, 1.0),
        core=False,
        needs=_TRAIN,
    ),
    "copying": Score(
        _copying,
        "zero",
        "Below 0 where samples are nearer to the training images than fresh images are, so copies; "
        "above 0 where they are farther away.",
        {"cells": CELLS},
        core=False,
        needs=_TRAIN,
    ),
    "likelihood_divergence": Score(
        _divergence,
        "lower",
        "How much less likely test images are under a density around the samples than training "
        "images under theirs: quality, variety and copying in one number.",
        {},
        core=False,
        needs=_TRAIN,
    ),
}


def check_names(names: Iterable[str] | None) -> list[str] | None:
    """Names of scores as a list, "all" by itself among them. Raises UsageError for any other."""
    names = None if names is None else list(names)
    for name in names or ():
        if name not in SCORES and names != ["all"]:
            raise unknown("--scores", name, [*SCORES, "all"])
    if names == []:
        raise invalid("--scores", "nothing", f"names with commas between: {', '.join(SCORES)}, all")
    return names


def chosen(names: Iterable[str] | None, pair: Pair) -> list[str]:
    """Names of scores, checked. None: the core ones; "all": every one that the sets allow."""
    names = check_names(names)
    if names is None or names == ["all"]:
        return [k for k, s in SCORES.items() if pair.has(s.needs) and (s.core or names is not None)]
    for name in names:
        # Features that are not there have a message of their own.
        missing = sorted(n for n in SCORES[name].needs - {"features"} if not pair.has({n}))
        if missing:
            hints = {
                "labels": "labels on both sides",
                "train": "--train, the training images",
                "spatial": "--features inception",
                "probabilities": "--features inception or classifier",
            }
            given = f"{name} without {' and '.join(hints[m] for m in missing)}"
            raise invalid("--scores", given, "scores that the given sets allow")
    return names


class Floor(NamedTuple):
    """Real images in the place of the samples. of: in words."""

    pair: Pair
    of: str


def compute(
    pair: Pair,
    names: Iterable[str] | None = None,
    *,
    floor: Callable[[Score], Floor | None] = lambda score: None,
    intervals: int = 0,
    left_out: dict[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores by name: {"value", "better", "says", settings..., "floor", "floor_of", "interval"}.

    left_out: where scores that cannot be had (too few images) are said, with the reason; None: they
    are an error. floor: of each score; None where it has none.

    intervals: how many random halves of both sides (drawn without replacement, so that no image is
    its own neighbour) the interval is from. The deviation of a statistic over such halves is its
    standard error over whole sets, to first order (the delete-half jackknife: Shao & Wu 1989); 1.96
    of them to either side of the value.
    """
    names = chosen(names, pair)
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        score = SCORES[name]
        try:
            about = {"better": score.better, "says": score.says}
            results[name] = {**score.settings, **about, **score.value(pair)}
        except UsageError as error:
            if left_out is None:
                raise
            left_out[name] = str(error)
            continue
        least = floor(score)
        results[name]["floor"] = None if least is None else _value(score, least.pair)
        results[name]["floor_of"] = None if least is None else least.of
    if intervals:
        spread = _spread(pair, list(results), intervals)
        for name in results:
            results[name] |= _interval(results[name]["value"], spread[name], SCORES[name].limits)
            results[name]["interval_draws"] = intervals
    return results


def _interval(value: float, error: float, limits: tuple[float, float]) -> dict[str, Any]:
    if not np.isfinite(error):
        return {"interval": None, "interval_of": "halves are too small for this score"}
    ends = np.clip([value - 1.96 * error, value + 1.96 * error], *limits)
    return {"interval": ends.tolist(), "interval_of": "1.96 standard errors, from random halves"}


def _value(score: Score, pair: Pair) -> float | None:
    """The score's value, or None where there are too few images for it."""
    try:
        return float(score.value(pair)["value"])
    except UsageError:
        return None


def _spread(pair: Pair, names: Sequence[str], count: int) -> dict[str, float]:
    """The standard deviation of each score over random halves of both sides; NaN: too small."""
    chance = np.random.default_rng(pair.seed)
    values: dict[str, list[float | None]] = {name: [] for name in names}
    for _ in range(count):
        half = pair.half(chance)
        for name, half_values in values.items():
            half_values.append(_value(SCORES[name], half))
    return {
        name: np.nan if None in half_values else float(np.std(np.array(half_values, float), ddof=1))
        for name, half_values in values.items()
    }
