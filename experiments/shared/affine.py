"""Euler's steps on Gaussians in float64: estimates affine in x keep a law that is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """x -> matrix x + offset, float64 [N, N] and [N]."""

    matrix: np.ndarray
    offset: np.ndarray

    def __add__(self, other: Affine) -> Affine:
        """The sum of their values."""
        return Affine(self.matrix + other.matrix, self.offset + other.offset)

    def __mul__(self, factor: float) -> Affine:
        """Its values times a number."""
        return Affine(factor * self.matrix, factor * self.offset)

    def after(self, first: Affine) -> Affine:
        """self(first(x))."""
        return Affine(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)


def eps_of(mean: np.ndarray, cov: np.ndarray, t: float) -> Affine:
    """E[eps | x] of data N(mean, cov) on the linear path, x = (1 - t) x0 + t eps."""
    gain = t * np.linalg.inv((1 - t) ** 2 * cov + t**2 * np.eye(len(mean)))
    return Affine(gain, -(1 - t) * gain @ mean)


def x0_of(eps: Affine, t: float) -> Affine:
    """(x - t eps) / (1 - t), the x0 that goes with an eps; t < 1."""
    return (Affine(np.eye(len(eps.offset)), np.zeros_like(eps.offset)) + eps * -t) * (1 / (1 - t))


def euler_law(
    velocity: Callable[[float], Affine], grid: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N] and covariance [N, N] of what Euler's method makes of N(0, I) along the grid."""
    mean, cov = np.zeros(size), np.eye(size)
    for t, s in zip(grid, grid[1:], strict=False):
        slope = velocity(float(t))
        step = np.eye(size) + (s - t) * slope.matrix
        mean, cov = step @ mean + (s - t) * slope.offset, step @ cov @ step.T
    return mean, cov
