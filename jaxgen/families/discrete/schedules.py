"""Schedules: the share of tokens that is noised at time t, from 0 at t=0 (data) to 1 at t=1.

Papers write gamma(r) = share(1 - r) (MaskGIT, section 3.3) or kappa = 1 - share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

Function = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """share(t) rising from 0 to 1, its slope, and `time`, its inverse."""

    share: Function
    slope: Function
    time: Function


def linear() -> Schedule:
    """share = t."""
    return Schedule(lambda t: t, jnp.ones_like, lambda m: m)


def cosine() -> Schedule:
    """share = sin(pi t / 2), MaskGIT's cosine of 1 - t: most tokens are revealed late."""
    half = math.pi / 2
    return Schedule(
        lambda t: jnp.sin(half * t),
        lambda t: half * jnp.cos(half * t),
        lambda m: jnp.arcsin(m) / half,
    )


def arccos() -> Schedule:
    """share = arccos(1 - t) 2 / pi (MaskBit, section 4.2); its slope at t = 0 is infinite."""
    half = math.pi / 2
    return Schedule(
        lambda t: jnp.arccos(1 - t) / half,
        lambda t: 1 / (half * jnp.sqrt(jnp.maximum(t * (2 - t), 1e-12))),
        lambda m: 1 - jnp.cos(half * m),
    )


def power(exponent: float = 2.0) -> Schedule:
    """share = 1 - (1 - t)^exponent (MaskGIT's square and cubic). UsageError unless exponent > 0."""
    if not exponent > 0:
        raise invalid("schedule.exponent", exponent, "a number > 0")
    return Schedule(
        lambda t: 1 - (1 - t) ** exponent,
        lambda t: exponent * (1 - t) ** (exponent - 1),
        lambda m: 1 - (1 - m) ** (1 / exponent),
    )
