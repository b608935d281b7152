"""One statement that an experiment makes about a number, and whether it holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Check(NamedTuple):
    """name, the value found, the bound as text ("<= 0.001"), and whether the value keeps it.

    control: the same check with the mechanism taken out; it is ok where the bound is *not* kept.
    """

    name: str
    value: float
    bound: str
    ok: bool
    control: bool = False


def control(check: Check) -> Check:
    """The negative control of a check that was made without the mechanism: ok where it fails.

    A value that is not a number shows nothing, so NaN is not ok.
    """
    failed = not check.ok and not math.isnan(check.value)
    return check._replace(bound=f"not {check.bound}", ok=failed, control=True)


def below(name: str, value: Any, bound: float) -> Check:
    """value <= bound; NaN fails."""
    return Check(name, float(value), f"<= {bound:g}", bool(value <= bound))


def above(name: str, value: Any, bound: float) -> Check:
    """value >= bound; NaN fails."""
    return Check(name, float(value), f">= {bound:g}", bool(value >= bound))


def near(name: str, value: Any, expected: float, tolerance: float) -> Check:
    """|value - expected| <= tolerance; NaN fails."""
    ok = bool(abs(value - expected) <= tolerance)
    return Check(name, float(value), f"{expected:g} +- {tolerance:g}", ok)


def mean_near(name: str, values: Any, expected: float, tolerance: float) -> Check:
    """The mean over seeds is near `expected`; three standard errors must fit into the tolerance.

    Or out of it: a mean that is further off than the tolerance and three standard errors is off.
    """
    mean, error, name = _over_seeds(name, values)
    if not (3 * error <= tolerance or abs(mean - expected) > tolerance + 3 * error):
        return _undecided(name, mean, f"{expected:g} +- {tolerance:g}")
    return near(name, mean, expected, tolerance)


def mean_above(name: str, values: Any, bound: float) -> Check:
    """The mean over seeds is above a bound that is three standard errors away from it."""
    mean, error, name = _over_seeds(name, values)
    if not abs(mean - bound) >= 3 * error:
        return _undecided(name, mean, f">= {bound:g}")
    return above(name, mean, bound)


def mean_below(name: str, values: Any, bound: float) -> Check:
    """The mean over seeds is below a bound that is three standard errors away from it."""
    mean, error, name = _over_seeds(name, values)
    if not abs(mean - bound) >= 3 * error:
        return _undecided(name, mean, f"<= {bound:g}")
    return below(name, mean, bound)


def _over_seeds(name: str, values: Any) -> tuple[float, float, str]:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) < 5:
        raise ValueError(f"{name}: got values of shape {numbers.shape}, expected [seeds >= 5]")
    error = float(numbers.std(ddof=1) / len(numbers) ** 0.5)
    return (
        float(numbers.mean()),
        error,
        f"{name} ({len(numbers)} seeds, standard error {error:.2g})",
    )


def _undecided(name: str, mean: float, bound: str) -> Check:
    """Neither the check nor its control holds where the seeds spread too far to say."""
    return Check(f"{name}: mean {mean:.3g}, the seeds spread too far", math.nan, bound, False)
