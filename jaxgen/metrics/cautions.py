"""What a reader of scores should know before believing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FAR = 20.0
"""A Frechet distance of so many times its floor: samples of another kind than the reference."""
NEIGHBOURS = ("precision", "density", "symmetric_precision")


def cautions(scores: Mapping[str, Mapping[str, Any]], classes: int | None = None) -> list[str]:
    """Sentences about scores by name ("value", "floor", "features"), for a receipt and its reader.

    Precision and density ask only whether samples lie among the reference's, as one network sees
    them; noise can, while its Frechet distance shows it. classes: of the classifier whose features
    were compared; one class teaches it nothing.
    """
    found = []
    for name, score in scores.items():
        value, floor = _number(score.get("value")), _number(score.get("floor"))
        if not _distance(name) or not floor > 0:
            continue
        near = [
            other
            for other, each in scores.items()
            if other.startswith(NEIGHBOURS) and each.get("features") == score.get("features")
        ]
        if value > FAR * floor and near:
            found.append(
                f"{name} is {value / floor:.0f} times its floor: these are not images like the "
                f"reference's, whatever {', '.join(near)} say."
            )
    if classes == 1:
        found.append("one class: the classifier learned nothing, and neither do its scores tell.")
    return found


def _distance(name: str) -> bool:
    return name.startswith(("fid", "fd_", "rfid", "rfd_")) and "infinity" not in name


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
