"""Laws of a metric of two sets of features: order, invariances, a known value, streaming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.testing.naming import law

Metric = Callable[[np.ndarray, np.ndarray], Any]
"""metric(samples [N, d], reference [M, d]) -> a number, or an array of several."""

Change = Callable[[np.ndarray], np.ndarray]

FINITE = "a metric is finite"
ORDER = "a metric does not depend on the order of examples"
GOLDEN = "a metric has its known value"
SYMMETRIC = "a distance is symmetric"
SELF = "a distance to itself is zero"
STREAMED = "a metric of a stream is that of the whole"


def invariance(name: str) -> str:
    """The name of the law that a metric does not change under `name`."""
    return f"a metric is invariant under {name}"


def rotation(features: np.ndarray) -> np.ndarray:
    """Features [N, d] turned by one orthogonal matrix, the same for every set."""
    size = features.shape[1]
    return features @ np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]


def translation(features: np.ndarray) -> np.ndarray:
    """Features [N, d] moved by one vector, the same for every set."""
    return features + np.random.default_rng(1).normal(size=features.shape[1])


def check_metric(
    metric: Metric,
    samples: np.ndarray,
    reference: np.ndarray,
    *,
    golden: Any = None,
    invariant: Mapping[str, Change] | None = None,
    symmetric: bool = False,
    zero: float | None = None,
    streamed: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Any] | None = None,
    rtol: float = 1e-9,
) -> None:
    """A metric's laws on samples [N, d] and a reference [M, d].

    golden: its value there, from elsewhere than its own code. invariant: name -> a change of
    features that it claims not to see when both sets are changed (`rotation`, `translation`).
    symmetric: whether it is a distance that does not know which set is which. zero: how far from
    0 the distance of the reference to itself may be; None where that is not 0. streamed: the same
    from lists of parts of the two sets, which may have different sizes. rtol: 1e-9 for float64;
    1e-5 for metrics that compute in float32.
    """
    chance = np.random.default_rng(0)
    value = np.asarray(metric(samples, reference), np.float64)

    def agrees(actual: Any, expected: Any = value, what: str = "") -> None:
        np.testing.assert_allclose(actual, expected, rtol=rtol, err_msg=what)

    with law(FINITE):
        assert np.isfinite(value).all(), f"{value}"
    with law(ORDER):
        for _ in range(3):
            order = [chance.permutation(len(each)) for each in (samples, reference)]
            agrees(metric(samples[order[0]], reference[order[1]]))
    if golden is not None:
        with law(GOLDEN):
            agrees(value, np.asarray(golden, np.float64))
    for name, change in (invariant or {}).items():
        with law(invariance(name)):
            agrees(metric(change(samples), change(reference)))
    if symmetric:
        with law(SYMMETRIC):
            agrees(metric(reference, samples))
    if zero is not None:
        with law(SELF):
            itself = np.abs(metric(reference, reference))
            assert (itself <= zero).all(), f"{itself}; allowed: {zero}"
    if streamed is not None:
        with law(STREAMED):
            for cuts in ([1, 4], [len(samples) // 2]):
                pieces = [np.split(each, cuts) for each in (samples, reference)]
                agrees(streamed(*pieces), what=f"cut at {cuts}")
