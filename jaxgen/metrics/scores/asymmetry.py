"""Precision and recall that stay symmetric in high dimension (Khayatkhoei & AbdAlmageed 2023).

k-nearest-neighbour precision asks whether samples fall into real balls. In high dimension points
inside the support do and points outside do not, at the same distance from it; recall errs the other
way. Each gets a complement that asks the question with the other set's balls, and the lower of both
counts. The complement of recall is `coverage` without its strictness.
"""

from __future__ import annotations

from jaxgen.metrics.scores.manifold import Manifold, coverage, precision, recall


def complement_precision(real: Manifold, generated: Manifold) -> float:
    """The share of generated balls that hold a real feature."""
    return coverage(generated, real.points, strict=False)


def complement_recall(real: Manifold, generated: Manifold) -> float:
    """The share of real balls that hold a generated feature."""
    return coverage(real, generated.points, strict=False)


def symmetric_precision(real: Manifold, generated: Manifold) -> float:
    """The lower of precision and its complement."""
    return min(precision(real, generated.points), complement_precision(real, generated))


def symmetric_recall(real: Manifold, generated: Manifold) -> float:
    """The lower of recall and its complement; of swapped sides, `symmetric_precision`."""
    return min(recall(generated, real.points), complement_recall(real, generated))
