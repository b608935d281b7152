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
from jaxgen.metrics.frechet import Moments, frechet_distance, moments
from jaxgen.metrics.kernel import kid, kid_estimates, polynomial_mmd, rbf_mmd, rbf_sums
from jaxgen.metrics.manifold import KINDS, Manifold, manifolds
from jaxgen.metrics.manifold import scores as manifold_scores


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One set: features [N, d], or their moments alone (`known`); labels [N] where there are some.

    name: what messages call it.
    """

    given: np.ndarray | None
    labels: np.ndarray | None = None
    known: Moments | None = None
    name: str = "features"

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
        rows = np.sort(chance.permutation(len(self.given))[: len(self.given) // 2])
        labels = None if self.labels is None else self.labels[rows]
        return Side(self.given[rows], labels, name=self.name)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What is compared: `real` is the reference, `made` the samples. seed: of what is drawn."""

    real: Side
    made: Side
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse features of different widths."""
        widths = (self.real.width, self.made.width)
        if len(set(widths)) > 1:
            given = f"{widths[0]} of an image in the reference and {widths[1]} in the samples"
            raise invalid("features", given, "the same number on both sides")

    @functools.cached_property
    def manifold(self) -> dict[str, float]:
        """Precision, recall, density and coverage from one pass."""
        return manifold_scores(self.real.manifolds, self.made.manifolds)


CMMD_SIGMA = 10.0
KID_SUBSETS, KID_SIZE = 100, 1000


class Score(NamedTuple):
    """value: Pair -> {"value", ...}. better: "lower" or "higher". settings: the convention.

    limits: the least and the largest value there can be.
    """

    value: Callable[[Pair], Mapping[str, Any]]
    better: str
    settings: Mapping[str, Any]
    limits: tuple[float, float] = (-np.inf, np.inf)


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


def _manifold(kind: str) -> Score:
    k, strict = KINDS[kind]
    value = lambda pair: {"value": pair.manifold[kind]}
    most = np.inf if kind == "density" else 1.0
    return Score(value, "higher", {"k": k, "strict": strict}, (0.0, most))


SCORES: dict[str, Score] = {
    "fid": Score(_fid, "lower", {"ddof": 1}, (0.0, np.inf)),
    "kid": Score(_kid, "lower", {"degree": 3}),
    **{f"{kind}_k{k}": _manifold(kind) for kind, (k, _) in KINDS.items()},
    "cmmd": Score(_cmmd, "lower", {"sigma": CMMD_SIGMA, "scale": 1000, "estimator": "biased"}),
}


def chosen(names: Iterable[str] | None) -> list[str]:
    """Names of scores, checked; None: all."""
    if names is None:
        return list(SCORES)
    names = list(names)
    for name in names:
        if name not in SCORES:
            raise unknown("--scores", name, SCORES)
    return names


def compute(
    pair: Pair, names: Iterable[str] | None = None, *, floor: Pair | None = None, intervals: int = 0
) -> dict[str, dict[str, Any]]:
    """Scores by name: {"value", "better", settings..., "floor", "interval"}.

    floor: real images in the place of the samples. intervals: how many random halves of both sides
    (drawn without replacement, so that no image is its own neighbour) the interval is from. The
    deviation of a statistic over such halves is its standard error over whole sets, to first order
    (the delete-half jackknife: Shao & Wu 1989); 1.96 of them to either side of the value.
    """
    names = chosen(names)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        score = SCORES[name]
        found[name] = {**score.settings, "better": score.better, **score.value(pair)}
        found[name]["floor"] = None if floor is None else _value(score, floor)
    if intervals:
        spread = _spread(pair, names, intervals)
        for name in names:
            found[name] |= _interval(found[name]["value"], spread[name], SCORES[name].limits)
            found[name]["interval_draws"] = intervals
    return found


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
        half = Pair(pair.real.half(chance), pair.made.half(chance), seed=pair.seed)
        for name, found in values.items():
            found.append(_value(SCORES[name], half))
    return {
        name: np.nan if None in found else float(np.std(np.array(found, float), ddof=1))
        for name, found in values.items()
    }
