"""Vendi score: how many different things a set holds (Friedman & Dieng 2023).

features -> the `spectrum` of their similarities -> `vendi_score`. It needs no reference; n equal
items score 1, n orthogonal ones n.
"""

from __future__ import annotations

import math

import numpy as np

from jaxgen.errors import invalid, unknown
from jaxgen.metrics.sets.inputs import table

# An RBF kernel's eigenvalues need the whole matrix: 800 MB in float64 at this many items.
_MOST = 10_000


def spectrum(
    features: np.ndarray, *, kernel: str = "cosine", sigma: float | None = None
) -> np.ndarray:
    """Eigenvalues of K / n of features [n, d], largest first; they sum to 1.

    kernel: "cosine", x.y / |x||y|, whose non-zero eigenvalues are those of a matrix of the smaller
    of n and d; "rbf", exp(-|x - y|^2 / (2 sigma^2)), of at most 10 000 items. Raises UsageError
    for rows of zeros (no angle) and for a sigma that is missing or has no use.
    """
    x = table("features", features)
    if kernel not in ("cosine", "rbf"):
        raise unknown("vendi kernel", kernel, ("cosine", "rbf"))
    if (sigma is not None) != (kernel == "rbf") or (sigma is not None and not sigma > 0):
        allowed = "a positive number" if kernel == "rbf" else "None with the cosine kernel"
        raise invalid("vendi sigma", sigma, allowed)
    matrix = _cosine(x) if sigma is None else _rbf(x, sigma)
    values = np.linalg.eigvalsh(matrix / len(x))[::-1]
    # What is left of exact zeros by rounding would count in orders below 1.
    values = np.where(values > values[0] * len(matrix) * np.finfo(np.float64).eps, values, 0.0)
    return values / values.sum()


def vendi_score(spectrum: np.ndarray, *, order: float = 1.0) -> float:
    """exp of the Renyi entropy of order q of the eigenvalues [n] (Pasarkar & Dieng 2024).

    Order 1 is the Vendi score, exp of the von Neumann entropy (Friedman & Dieng 2023); 0 the
    number of eigenvalues that are not 0; infinity 1 over the largest. It falls with the order.
    """
    if not order >= 0:
        raise invalid("vendi order", order, "0 or more, infinity included")
    p = spectrum[spectrum > 0]
    if order == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    if math.isinf(order):
        return float(1 / p.max())
    return float((p**order).sum() ** (1 / (1 - order)))


def _cosine(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.all():
        raise invalid(
            "features", f"{int((lengths == 0).sum())} rows of zeros", "rows with an angle"
        )
    x = x / lengths
    return x.T @ x if x.shape[1] < len(x) else x @ x.T


def _rbf(x: np.ndarray, sigma: float) -> np.ndarray:
    if len(x) > _MOST:
        raise invalid("features", f"{len(x)} rows", f"{_MOST} or fewer with an RBF kernel")
    x = x - x.mean(0)
    norms = (x * x).sum(1)
    squared = norms[:, None] + norms - 2 * x @ x.T
    return np.exp(-np.maximum(squared, 0) / (2 * sigma**2))
