"""Comparing methods at equal budgets: the expected best of n runs, and one number of P and R.

Scores of a pool of runs -> `expected_best` (Lucic et al. 2018, who resample instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from jaxgen.errors import invalid, unknown
from jaxgen.metrics.sets.inputs import table


class Best(NamedTuple):
    """mean, deviation [k]: of the best of each number of runs, over which runs they are."""

    mean: np.ndarray
    deviation: np.ndarray


def expected_best(results: np.ndarray, counts: Sequence[int], *, better: str = "lower") -> Best:
    """The best of n runs drawn without replacement from results [N], for each n of `counts`.

    In closed form: the i-th best is the best of n with probability C(N - i, n - 1) / C(N, n). The
    mean is unbiased for the best of n new runs, for n from 1 to N.
    """
    if better not in ("lower", "higher"):
        raise unknown("better", better, ("lower", "higher"))
    results_sorted = np.sort(table("results", np.asarray(results)[:, None])[:, 0])
    if better == "higher":
        results_sorted = results_sorted[::-1]
    size, n = len(results_sorted), np.asarray(counts)
    if not n.size or n.min() < 1 or n.max() > size:
        raise invalid("counts", list(counts), f"1 to {size}, the results")
    rest = size - 1 - np.arange(size)
    # Logs of binomials; those that are 0 come out as such.
    logs = _log_binomial(rest, n[:, None] - 1) - _log_binomial(np.array(size), n[:, None])
    chances = np.exp(logs)
    mean = chances @ results_sorted
    variance = (chances * (results_sorted - mean[:, None]) ** 2).sum(1)
    return Best(mean, np.sqrt(variance))


def f_score(precision: float, recall: float, *, beta: float = 1.0) -> float:
    """(1 + b^2) P R / (b^2 P + R), 0 where both are 0; recall counts b times as much."""
    if not (0 <= precision <= 1 and 0 <= recall <= 1 and beta > 0):
        raise invalid(
            "precision, recall, beta", (precision, recall, beta), "0 to 1, 0 to 1, above 0"
        )
    below = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / below if below else 0.0


def _log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    value = (
        scipy.special.gammaln(n + 1)
        - scipy.special.gammaln(k + 1)
        - scipy.special.gammaln(np.maximum(n - k, 0) + 1)
    )
    return np.where(k <= n, value, -np.inf)
