"""What every score asks of its features: a table of finite numbers, with rows enough."""

from __future__ import annotations

import numpy as np

from jaxgen.errors import invalid


def table(option: str, features: np.ndarray, *, least: int = 1) -> np.ndarray:
    """Features [N, d] as float64; UsageError unless N >= `least`, d >= 1 and all are finite."""
    checked = np.asarray(features)
    if checked.ndim != 2 or len(checked) < least or not checked.shape[1]:
        raise invalid(option, checked.shape, f"a shape [N, d] with N >= {least}")
    checked = checked.astype(np.float64)
    lost = int((~np.isfinite(checked)).any(1).sum())
    if lost:
        raise invalid(option, f"{lost} rows with values that are not finite", "finite features")
    return checked


def tables(*named: tuple[str, np.ndarray], least: int = 1) -> list[np.ndarray]:
    """The tables of (option, features) pairs, each as `table`, all of one width d."""
    checked = [table(option, features, least=least) for option, features in named]
    width = checked[0].shape[1]
    for (option, _), features in zip(named, checked, strict=True):
        if features.shape[1] != width:
            raise invalid(option, features.shape, f"a shape [N, {width}], as the {named[0][0]}")
    return checked


def distributions(option: str, probabilities: np.ndarray) -> np.ndarray:
    """Predictions [N, C] as float64; UsageError unless every row is a distribution (to 1e-3)."""
    checked = table(option, probabilities)
    if (checked < 0).any() or (abs(checked.sum(1) - 1) > 1e-3).any():
        raise invalid(option, "rows that are no distributions", "rows >= 0 that sum to 1")
    return checked
