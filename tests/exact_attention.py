"""Attention in float64 numpy, from the definition: what the tests hold everything against."""

from __future__ import annotations

import numpy as np

from jaxgen.ops import BlockCausal, Causal, Full, Prefix

MASKS = [Full(), Causal(), Prefix(5), BlockCausal(6)]


def seen(mask, row, column):
    """Whether one row sees one column, by the words of the mask's docstring."""
    match mask:
        case Full():
            return True
        case Causal():
            return column <= row
        case Prefix(length):
            return column <= row or (row < length and column < length)
        case BlockCausal(size):
            return column // size <= row // size
    raise AssertionError(mask)


def table(mask, rows, columns, row=0, column=0, keys=None):
    """Bool [rows, columns]."""
    keys = columns if keys is None else keys
    return np.array(
        [
            [seen(mask, row + i, column + j) and j < keys for j in range(columns)]
            for i in range(rows)
        ]
    )


def exact(q, k, v, scale, mask=None, bias=None):
    """Out [B, H, N, E] and the log-sum-exp [B, H, N] (-inf where nothing is seen)."""
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (each[:, [h // groups for h in range(q.shape[1])]] for each in (k, v))
    scores = np.einsum("bhnd,bhmd->bhnm", q, k) * scale
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    top = scores.max(-1)
    if mask is not None:
        weights = weights * mask
    total = weights.sum(-1)
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    safe = np.where(total == 0, 1, total)[..., None]
    return np.einsum("bhnm,bhmd->bhnd", weights / safe, v), lse


def error(found, want):
    """Relative, in norm."""
    found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(found - want) / np.linalg.norm(want)
