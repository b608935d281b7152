"""Hypothesis strategies for what the pieces of a generative model are given.

Needs hypothesis, `pip install "jaxgen[testing]"`, only where one of them is called.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid

Strategy = Any
"""A `hypothesis.strategies.SearchStrategy`."""


def _hypothesis() -> Any:
    """`hypothesis.strategies`. Raises UsageError where hypothesis is not installed."""
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise invalid(
            "jaxgen.testing.strategies", "an environment without hypothesis", "one with it",
            'pip install "jaxgen[testing]"',
        ) from error  # fmt: skip
    return strategies


def shapes(min_dims: int = 1, max_dims: int = 3, min_side: int = 1, max_side: int = 8) -> Strategy:
    """Shapes of one example, tuples of so many sides; (8, 8, 3) is an image's."""
    st = _hypothesis()
    side = st.integers(min_side, max_side)
    return st.lists(side, min_size=min_dims, max_size=max_dims).map(tuple)


def dtypes(narrow: bool = True) -> Strategy:
    """Floating-point dtypes: float32 and, where narrow, bfloat16 and float16."""
    st = _hypothesis()
    return st.sampled_from(["float32", "bfloat16", "float16"][: 3 if narrow else 1]).map(jnp.dtype)


def times(ends: bool = True) -> Strategy:
    """Times in [0, 1] as float32's numbers, both ends often; without ends in (0, 1)."""
    st = _hypothesis()
    inside = st.floats(0, 1, width=32, exclude_min=not ends, exclude_max=not ends)
    return st.one_of(st.sampled_from([0.0, 1.0]), inside) if ends else inside


def labels(num_classes: int, size: int | None = None, null: bool = True) -> Strategy:
    """Labels int32 in [0, num_classes], the last "no label"; [size], or [B] for B from 1 to 8.

    null: whether "no label" comes too, as often as any other.
    """
    st = _hypothesis()
    least, most = (1, 8) if size is None else (size, size)
    label = st.integers(0, num_classes if null else num_classes - 1)
    return st.lists(label, min_size=least, max_size=most).map(lambda a: np.array(a, np.int32))


def weights(low: float = -1.0, high: float = 10.0) -> Strategy:
    """Guidance weights in [low, high], 0 (unconditional) and 1 (conditional) often."""
    st = _hypothesis()
    special = [w for w in (0.0, 1.0) if low <= w <= high]
    inside = st.floats(low, high, width=32)
    return st.one_of(st.sampled_from(special), inside) if special else inside


def keys() -> Strategy:
    """Typed keys: `jax.random.key` of any seed of 32 bits."""
    return _hypothesis().integers(0, 2**32 - 1).map(jax.random.key)
