"""FD-UCB and IS-UCB (Hu, Leung & Farnia 2024): the best generator while asking for few samples.

Each generator is an arm. Every round asks the one whose score could be best as far as its samples
so far allow: a lower confidence bound of its Frechet distance, or an upper one of its inception
score. batch of features -> merged statistics -> `Bound` -> the next arm.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.scores.frechet import Moments, gaussian_distance, merge, moments
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.metrics.sets.side import Extractor
from jaxgen.run.model import Model

# (seed, count) -> features or predictions [count, d]; no seed is given twice.
Generator = Callable[[int, int], np.ndarray]
Statistics = TypeVar("Statistics")


class Bound(NamedTuple):
    """A score of which less is better: as estimated, and as low as the samples allow it to be."""

    estimate: float
    optimistic: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which arm was asked in each round, and what is known at the end.

    pulls: int [rounds]. estimates, optimistic: of every arm [arms], of its score (of which less is
    better: the Frechet distance, or minus the logarithm of the inception score). images: [arms].
    """

    pulls: np.ndarray
    estimates: np.ndarray
    optimistic: np.ndarray
    images: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """The share of all rounds that asked each arm, [arms]."""
        return np.bincount(self.pulls, minlength=len(self.estimates)) / len(self.pulls)

    @property
    def best(self) -> int:
        """The arm that was asked most; of equals, the one with the lower estimate."""
        counts = np.bincount(self.pulls, minlength=len(self.estimates))
        return int(np.lexsort((self.estimates, -counts))[0])


def select(
    generators: Sequence[Generator],
    reference_features: np.ndarray,
    rounds: int,
    *,
    batch: int = 16,
    bound: Callable[[Moments, Moments], Bound] | None = None,
    seed: int = 0,
) -> Selection:
    """FD-UCB: the generator with the least Frechet distance to `reference_features` [N, d].

    generators: functions (seed, count) -> features [count, d]; `of_model` makes one of a trained
    model and an extractor. rounds: batches asked for in all, one of each generator first. batch:
    images a round. bound: (reference, generated) -> `Bound`; None: the paper's, `frechet_bound`,
    which holds for any number of images and is wide for many features; `asymptotic_bound` is the
    one for features of a network. A round costs some five eigendecompositions of d x d. Raises
    UsageError for fewer rounds than generators, and features not finite or not [count, d].

        arms = [of_model(jaxgen.load(w), classifier) for w in ("runs/a", "runs/b")]
        real = classifier.features(test_images)
        found = select(arms, real, rounds=200, bound=asymptotic_bound)
        found.best, found.shares, found.estimates
    """
    reference = moments(_checked(np.asarray(reference_features), "reference_features"))
    if reference.size < 2:
        raise invalid("reference_features", f"{reference.size} images", "2 or more")
    width = len(reference.mean)

    def update(before: Moments | None, features: np.ndarray) -> Moments:
        if features.shape[1] != width:
            raise invalid("generators", features.shape, f"features [{batch}, {width}]")
        return moments(features) if before is None else merge([before, moments(features)])

    of_arm = functools.partial(bound or frechet_bound, reference)
    return play(generators, update, of_arm, rounds, batch=batch, seed=seed)


def select_by_inception_score(
    generators: Sequence[Generator],
    rounds: int,
    *,
    batch: int = 16,
    delta: float = 0.05,
    seed: int = 0,
) -> Selection:
    """IS-UCB: the generator with the largest inception score.

    generators: functions (seed, count) -> predictions [count, C], distributions over classes. The
    rest is as for `select`; the estimates are -ln IS.
    """
    bound = functools.partial(inception_bound, delta=delta)
    return play(generators, _add_predictions, bound, rounds, batch=batch, seed=seed)


def play(
    generators: Sequence[Generator],
    update: Callable[[Statistics | None, np.ndarray], Statistics],
    bound: Callable[[Statistics], Bound],
    rounds: int,
    *,
    batch: int = 16,
    seed: int = 0,
) -> Selection:
    """Ask the arm with the least optimistic score, after one batch of each; the paper's algorithm.

    update: (statistics or None, features [batch, d]) -> statistics. bound: statistics -> `Bound`;
    with `optimistic = estimate` this is greedy, which may never come back to an unlucky arm.
    """
    arms = len(generators)
    if arms < 1:
        raise invalid("generators", f"{arms} of them", "1 or more")
    if rounds < arms:
        raise invalid("rounds", rounds, f"{arms} or more: each generator is asked once")
    if batch < 2:
        raise invalid("batch", batch, "images >= 2")
    statistics: list[Any] = [None] * arms
    bounds = [Bound(np.inf, -np.inf)] * arms
    pulls = np.empty(rounds, int)
    for place in range(rounds):
        arm = int(np.argmin([each.optimistic for each in bounds]))
        features = np.asarray(generators[arm](seed * rounds + place, batch))
        if len(features) != batch:
            raise invalid(f"generators[{arm}]", features.shape, f"features [{batch}, d]")
        features = _checked(features, f"generators[{arm}]")
        statistics[arm] = update(statistics[arm], features)
        bounds[arm] = bound(statistics[arm])
        pulls[place] = arm
    return Selection(
        pulls,
        np.array([each.estimate for each in bounds]),
        np.array([each.optimistic for each in bounds]),
        np.bincount(pulls, minlength=arms) * batch,
    )


def of_model(
    model: Model, extractor: Extractor, *, labels: Sequence[int] | None = None, **options: Any
) -> Generator:
    """A trained model as a generator of features.

    labels: those to draw from, uniformly (None: all classes). options: of `Model.sample` (guidance,
    steps, ema, ...). For `select_by_inception_score`, wrap its classifier's `probabilities`.
    """
    drawn = np.arange(model.setup.spec.num_classes) if labels is None else np.asarray(labels)

    def generate(seed: int, count: int) -> np.ndarray:
        chosen = np.random.default_rng(seed).choice(drawn, count)
        images = model.sample(chosen, seed=seed, **options).images
        return np.asarray(extractor.features(quantise(images)), np.float64)

    return generate


def frechet_bound(
    reference: Moments, generated: Moments, *, delta: float = 0.05, kappa: float = 1.0
) -> Bound:
    """The Frechet distance to a reference taken as exact, and a lower confidence bound of it.

    For normal features each of these holds with probability 1 - delta / 3, L = ln(3 / delta), S the
    covariance, r = tr S / |S|, n images, and the sample's S put for the true one:

        |mean - sample's|^2 <= (tr S + 2 sqrt(L tr S^2) + 2 L |S|) / n     (Hsu et al. 2012)
        |tr S - sample's| <= 2 sqrt(L tr S^2 / n) + 2 L |S| / n            (Laurent & Massart 2000)
        |S - sample's| <= D = kappa^2 |S| (sqrt((r + L) / n) + (r + L) / n)
                                                                  (Koltchinskii & Lounici 2017)

    The cross term tr (R^1/2 S R^1/2)^1/2 is then at most what it is at the sample's S + D. The
    paper bounds it further, by D^1/2 tr R^1/2 more than the sample's; this is never looser. kappa:
    their theorem's constant, which nobody knows; 1 is the paper's choice.
    """
    if not 0 < delta < 1:
        raise invalid("delta", delta, "0 to 1, both excluded")
    if not kappa > 0:
        raise invalid("kappa", kappa, "> 0")
    size, covariance = generated.size, generated.covariance
    likely = np.log(3 / delta)
    values = np.linalg.eigvalsh(covariance)
    norm, trace, square = max(values[-1], 0.0), values.sum(), (values**2).sum()
    mean = np.sqrt((trace + 2 * np.sqrt(likely * square) + 2 * likely * norm) / size)
    spread = 2 * np.sqrt(likely * square / size) + 2 * likely * norm / size
    rank = (trace / norm if norm > 0 else 0.0) + likely
    apart = kappa**2 * norm * (np.sqrt(rank / size) + rank / size)
    given = (reference.mean, reference.covariance)
    estimate = gaussian_distance(generated.mean, covariance, *given)
    # With the mean at the reference's, what is left is the covariances' part; S + D adds d D to
    # its trace, which is not meant.
    wide = covariance + apart * np.eye(len(covariance))
    covariance_part = gaussian_distance(reference.mean, wide, *given) - apart * len(covariance)
    distance = np.linalg.norm(generated.mean - reference.mean)
    optimistic = max(distance - mean, 0.0) ** 2 + covariance_part - spread
    # A distance is never below 0, but of several that may be 0 the least known is to be asked.
    return Bound(estimate, float(optimistic))


def asymptotic_bound(reference: Moments, generated: Moments, *, delta: float = 0.05) -> Bound:
    """The Frechet distance, and what is left of it less its bias and sqrt(2 ln(1 / delta)) errors.

    Where `frechet_bound` bounds the trace and the cross term apart, whose errors nearly cancel,
    this takes the delta method's variance of their sum, for n normal features and an exact
    reference: with T the map that carries N(0, S) to N(0, R) and A = 1 - T,

        variance = (4 m S m + 2 tr (A S A S)) / n,         m the difference of the means,
        bias = (tr S + sum_i s_i / 4 + sum_ij s_i s_j / (2 (s_i + s_j))) / n,

    s_i the eigenvalues of (R^1/2 S R^1/2)^1/2 (its second-order expansion; for S = R = 1 the second
    part is d (d + 1) / (4 n)). It needs n well above d: below 2 d + 2 images anything is possible
    (-inf), and the arm is asked again.
    """
    if not 0 < delta < 1:
        raise invalid("delta", delta, "0 to 1, both excluded")
    covariance, given = generated.covariance, reference.covariance
    estimate = gaussian_distance(reference.mean, given, generated.mean, covariance)
    size, dimension = generated.size, len(generated.mean)
    if size < 2 * dimension + 2:
        return Bound(estimate, -np.inf)
    values, vectors = np.linalg.eigh(given)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    squared, basis = np.linalg.eigh(root @ covariance @ root)
    cross = np.sqrt(np.maximum(squared, 0))
    # Directions that the reference hardly has: the map out of them is 0, as is what they add.
    seen = cross > 1e-7 * cross.max()
    carried = root @ basis[:, seen]
    away = covariance - (carried / cross[seen]) @ carried.T @ covariance
    apart = generated.mean - reference.mean
    variance = (4 * apart @ covariance @ apart + 2 * np.sum(away * away.T)) / size
    some = cross[seen]
    pairs = np.outer(some, some) / (2 * (some[:, None] + some))
    bias = (np.trace(covariance) + some.sum() / 4 + pairs.sum()) / size
    error = np.sqrt(2 * np.log(1 / delta) * max(variance, 0.0))
    return Bound(estimate, float(estimate - bias - error))


class Predictions(NamedTuple):
    """Sums over predictions [N, C]: size, p, p^2 [C], entropy H(p), H(p)^2."""

    size: int
    p: np.ndarray
    p_squared: np.ndarray
    entropy: float
    entropy_squared: float


def inception_bound(predictions: Predictions, *, delta: float = 0.05) -> Bound:
    """-ln of the inception score, and as low as its parts may be with probability 1 - delta.

    ln IS = H(mean p) - mean H(p). By the empirical Bernstein inequality (Maurer & Pontil 2009), a
    mean of n values in [0, R] is off by at most sqrt(2 V L / n) + 7 R L / (3 (n - 1)), V their
    variance, L = ln(4 (C + 1) / delta) for C + 1 means at once, each on both sides. H(mean p) is at
    most the sum of the largest -q ln q with each q in its interval, and at most ln C.
    """
    if not 0 < delta < 1:
        raise invalid("delta", delta, "0 to 1, both excluded")
    size, classes = predictions.size, len(predictions.p)
    likely = np.log(4 * (classes + 1) / delta)

    def width(total: Any, squared: Any, span: float) -> Any:
        variance = np.maximum(squared - total**2 / size, 0) / (size - 1)
        return np.sqrt(2 * variance * likely / size) + 7 * span * likely / (3 * (size - 1))

    mean = predictions.p / size
    off = width(predictions.p, predictions.p_squared, 1.0)
    # -q ln q rises up to q = 1 / e and falls beyond.
    most = np.clip(np.exp(-1), np.maximum(mean - off, 0), np.minimum(mean + off, 1))
    marginal = min(float(_plogp(most).sum()), float(np.log(classes)))
    conditional = predictions.entropy / size
    off_entropy = width(predictions.entropy, predictions.entropy_squared, np.log(classes))
    estimate = conditional - float(_plogp(mean).sum())
    return Bound(estimate, float(max(conditional - off_entropy, 0.0) - marginal))


def _plogp(p: np.ndarray) -> np.ndarray:
    """-p ln p, 0 at 0."""
    return -p * np.log(np.where(p > 0, p, 1.0))


def _add_predictions(before: Predictions | None, p: np.ndarray) -> Predictions:
    if (p < 0).any() or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise invalid("generators", "rows that are no distributions", "predictions [batch, C]")
    entropy = _plogp(p).sum(1)
    new = Predictions(
        len(p), p.sum(0), (p**2).sum(0), float(entropy.sum()), float((entropy**2).sum())
    )
    if before is None:
        return new
    if len(before.p) != p.shape[1]:
        raise invalid("generators", p.shape, f"predictions over {len(before.p)} classes")
    return Predictions(
        before.size + new.size,
        before.p + new.p,
        before.p_squared + new.p_squared,
        before.entropy + new.entropy,
        before.entropy_squared + new.entropy_squared,
    )


def _checked(features: np.ndarray, option: str) -> np.ndarray:
    """Features as float64 [N, d], finite."""
    if features.ndim != 2 or 0 in features.shape:
        raise invalid(option, features.shape, "features [N, d]")
    if not np.isfinite(features).all():
        raise invalid(option, "features that are not finite", "finite numbers")
    return features.astype(np.float64)
