"""Pareto fronts: the settings of a generator that no other beats in everything.

Scores (consistency, diversity, realism) of each setting -> `front`. Astolfi et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.sets.inputs import table


def front(scores: np.ndarray, better: Sequence[str]) -> np.ndarray:
    """Which settings are not dominated: bool [n] of scores [n, k]; better: k of "higher", "lower".

    A setting dominates another if it is as good in every score and better in one; of equal settings
    all stay.
    """
    values = table("scores", scores)
    if len(better) != values.shape[1] or not set(better) <= {"higher", "lower"}:
        raise invalid("better", tuple(better), f"{values.shape[1]} of 'higher' and 'lower'")
    values = values * [1 if name == "higher" else -1 for name in better]
    kept: list[np.ndarray] = []
    # From the best in the first score down: whoever dominates a setting comes before it.
    for candidate in np.unique(values, axis=0)[::-1]:
        if not any((other >= candidate).all() for other in kept):
            kept.append(candidate)
    return (values[:, None] == np.array(kept)).all(2).any(1)
