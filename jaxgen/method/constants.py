"""Arrays that lie among a network's parameters and are not trained: random frequencies, phases.

A module called `CONSTANTS` holds them, so a checkpoint has them under that name. No optimizer steps
them, no average moves them, and they are not counted as parameters.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

CONSTANTS = "constants"


def is_constant(path: tuple[Any, ...]) -> bool:
    """Whether a leaf at a path of `jax.tree_util` lies in a module called `CONSTANTS`."""
    return any(getattr(key, "key", None) == CONSTANTS for key in path)


def without_constants(updates: PyTree) -> PyTree:
    """An optimizer's updates with zeros for constants, which weight decay would move otherwise."""
    return jax.tree_util.tree_map_with_path(
        lambda path, update: jnp.zeros_like(update) if is_constant(path) else update, updates
    )
