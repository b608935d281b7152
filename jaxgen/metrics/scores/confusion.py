"""Confusion: what a classifier takes samples for, by the class that was asked for."""

from __future__ import annotations

import numpy as np

MOST = 400
"""Pairs that are told: all of 20 classes."""


def confusion(asked: np.ndarray, found: np.ndarray) -> list[list[int]]:
    """[asked for, taken for, how many] of labels asked [N] and found [N], int; pairs that occur.

    Mistakes first, the most frequent first (then by label), then what was right; at most `MOST`,
    so that of many classes the mistakes are kept.
    """
    pairs, counts = np.unique(np.stack([asked, found], 1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts, pairs[:, 0] == pairs[:, 1]))[:MOST]
    return np.column_stack([pairs, counts])[order].astype(int).tolist()
