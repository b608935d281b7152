"""Whether probabilities of classes mean what they say: calibration error, Brier score, likelihood.

Scores of classes [N, C] are unnormalised log-probabilities: logits, or log-likelihoods of an image
under each class, whose posterior for equal priors is their softmax. float64 throughout.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from jaxgen.errors import invalid

BINS = 15
"""Bins of confidence, as Guo et al. 2017 count them."""

TEMPERATURES = (1e-3, 1e6)
"""Where a temperature is looked for."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Bins of equal width over confidence [0, 1]; an edge belongs to the bin below it.

    count [bins]: images whose highest probability lies there. confidence, accuracy [bins]: the mean
    of that probability, and the share of them that are right; NaN where there are none.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean over images of their bin's |accuracy - confidence|."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.count * gap).sum() / self.count.sum())


def reliability(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Confidence and accuracy by bin (Guo et al. 2017) of p [N, C] and labels [N].

    Bin m of M holds confidences in ((m - 1) / M, m / M]; equally probable classes: the first wins.
    Raises UsageError for shapes that do not fit, no images and bins < 1.
    """
    p, labels = _checked(p, labels)
    top, right = p.max(1), p.argmax(1) == labels
    place = _bins(top, bins)
    count = np.bincount(place, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.bincount(place, values.astype(np.float64), bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(count, mean(top), mean(right))


def error_floor(p: np.ndarray, bins: int = BINS, *, draws: int = 200, seed: int = 0) -> float:
    """The calibration error that as many images show on average if p [N, C] is exactly right.

    It is not 0: a bin's accuracy is that of finitely many images. The mean over `draws` sets of
    outcomes drawn from p itself (consistency resampling, Broecker & Smith 2007).
    """
    p = np.asarray(p, np.float64)
    top = p.max(1)
    member = _bins(top, bins)[:, None] == np.arange(bins)
    rng, total = np.random.default_rng(seed), 0.0
    for _ in range(draws):
        right = rng.random(len(top)) < top
        total += np.abs((right - top) @ member).sum()
    return float(total / (draws * len(top)))


def brier(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of p [N, C] to the label's indicator, summed over classes: 0 to 2.

    Brier 1950. For two classes it is twice what is often given for the probability of one.
    """
    p, labels = _checked(p, labels)
    return float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())


def log_posterior(scores: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """ln softmax(scores / temperature) [N, C]; temperature: one number, or one per image [N]."""
    scaled = np.asarray(scores, np.float64) / np.reshape(temperature, (-1, 1))
    log_probs: np.ndarray = scipy.special.log_softmax(scaled, axis=1)
    return log_probs


def negative_log_likelihood(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Mean -ln p(label | image) in nats, of log_p [N, C] and labels [N]."""
    log_p, labels = _checked(log_p, labels)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, section 4.2).

    It is convex in 1 / temperature. 1 where no label is beaten by another class: the minimum would
    then be at 0, certainty, and says nothing about other images. Raises as `reliability`.
    """
    scores, labels = _checked(scores, labels)
    of_label = scores[np.arange(len(labels)), labels]
    if (of_label == scores.max(1)).all():
        return 1.0
    minimum = scipy.optimize.minimize_scalar(
        lambda log: negative_log_likelihood(log_posterior(scores, np.exp(log)), labels),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(minimum.x))


def cross_fitted(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Temperatures (for images at even places, at odd places), each fitted on the other half.

    So every image is judged at a temperature that it had no part in. Raises UsageError for fewer
    than 2 images.
    """
    if len(labels) < 2:
        raise invalid("images", len(labels), "2 or more: half of them fit a temperature")
    return temperature(scores[1::2], labels[1::2]), temperature(scores[::2], labels[::2])


def alternating(temperatures: tuple[float, float], count: int) -> np.ndarray:
    """The temperatures of `cross_fitted`, one per image: [count]."""
    return np.resize(temperatures, count)


MEANINGS = {
    "accuracy": ("higher", "The share of images whose class is found."),
    "nll": (
        "lower",
        "How improbable, in nats, the true class seemed: sure mistakes cost most.",
    ),
    "brier": (
        "lower",
        "The squared distance of the probabilities from certainty of the true class: 0 to 2.",
    ),
    "ece": (
        "lower",
        "How far, on average, the probability of the answer is from how often it is right.",
    ),
}
"""Of each of `summary`: which is better, and what it tells."""


def summary(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    temperature: float | np.ndarray = 1.0,
    bins: int = BINS,
) -> dict[str, float]:
    """accuracy, nll (nats), brier, ece with its floor, and the mean confidence, by name.

    scores [N, C], labels [N]; temperature as in `log_posterior`. Raises as `reliability`.
    """
    log_p = log_posterior(scores, temperature)
    p = np.exp(log_p)
    return {
        "accuracy": float((p.argmax(1) == labels).mean()),
        "nll": negative_log_likelihood(log_p, labels),
        "brier": brier(p, labels),
        "ece": reliability(p, labels, bins).error,
        "ece_floor": error_floor(p, bins),
        "confidence": float(p.max(1).mean()),
    }


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    if bins < 1:
        raise invalid("bins", bins, "bins >= 1")
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")


def _checked(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        given = f"{values.shape} and labels {labels.shape}"
        raise invalid("probabilities", given, "[N, C] and labels [N], N >= 1")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        wrong = f"labels {labels.min()} to {labels.max()}"
        raise invalid("labels", wrong, f"0 to {values.shape[1] - 1}")
    return values, labels
