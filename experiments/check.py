"""One statement that an experiment makes about a number, and whether it holds."""

from __future__ import annotations

from typing import Any, NamedTuple


class Check(NamedTuple):
    """name, the value found, the bound as text ("<= 0.001"), and whether the value keeps it."""

    name: str
    value: float
    bound: str
    ok: bool


def below(name: str, value: Any, bound: float) -> Check:
    """value <= bound; NaN fails."""
    return Check(name, float(value), f"<= {bound:g}", bool(value <= bound))


def above(name: str, value: Any, bound: float) -> Check:
    """value >= bound; NaN fails."""
    return Check(name, float(value), f">= {bound:g}", bool(value >= bound))


def near(name: str, value: Any, expected: float, tolerance: float) -> Check:
    """|value - expected| <= tolerance; NaN fails."""
    ok = bool(abs(value - expected) <= tolerance)
    return Check(name, float(value), f"{expected:g} +- {tolerance:g}", ok)
