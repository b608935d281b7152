"""Positions of patches on a grid: a fixed sin-cos table to add, rotary angles to turn by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.ops.rotary import rotate

__all__ = ["rope_2d", "rotate", "sin_cos_2d"]


def sin_cos_2d(rows: int, columns: int, width: int) -> jax.Array:
    """The fixed 2-D table of DiT and MAE: float32 [rows * columns, width], row by row.

    The first half encodes the column and the second half the row, each as sines, then cosines, of
    the position times 10000 ** (-i / (width / 4)). width must be a multiple of 4.
    """
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))

    def encode(positions: np.ndarray) -> np.ndarray:
        angles = positions.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return jnp.asarray(np.concatenate([encode(column), encode(row)], axis=1), jnp.float32)


def rope_2d(rows: int, columns: int, size: int, *, base: float = 10_000.0) -> jax.Array:
    """Rotary angles of a grid, axial: float32 [rows * columns, size / 2].

    The first half of the angles turns with the row, the second with the column (Su et al. 2021,
    eq. 15, along each axis). size: a head's, a multiple of 4.
    """
    frequencies = base ** (-np.arange(size // 4) / (size / 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]
    return jnp.asarray(np.concatenate(angles, axis=1), jnp.float32)
