"""Images in a study's rows, as text, and a figure of them: a line for each part, a panel a way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.studies.trained import Row

DIGITS = "0123456789abcdefg"
"""The 17 levels of an element of the digits."""
WIDE, SIDE = 5, 8
"""Images beside each other in a panel; their side."""


def strip(images: Any) -> Row:
    """{"strip": a text for each of images [N, 8, 8, 1] in [-1, 1], of its 64 levels}."""
    levels = np.clip(np.round(8 * (np.asarray(images) + 1)), 0, 16).astype(int)
    return {"strip": ["".join(DIGITS[n] for n in x) for x in levels.reshape(len(levels), -1)]}


def tiled(texts: Sequence[str]) -> np.ndarray:
    """What `strip` wrote as a picture in [0, 1], `WIDE` wide, two or more high; NaN elsewhere."""
    high = max(-(-len(texts) // WIDE), 2)
    whole = np.full((high * (SIDE + 1) - 1, WIDE * (SIDE + 1) - 1), np.nan)
    for n, text in enumerate(texts):
        top, left = (SIDE + 1) * (n // WIDE), (SIDE + 1) * (n % WIDE)
        levels = [DIGITS.index(c) / (len(DIGITS) - 1) for c in text]
        whole[top : top + SIDE, left : left + SIDE] = np.reshape(levels, (SIDE, SIDE))
    return whole


def picture(rows: Sequence[Row], titles: dict[str, str]) -> plt.Figure:
    """The strips of all rows that have one; titles: of each part, by the rows' "part"."""
    parts = [name for name in titles if any(row["part"] == name for row in rows)]
    lines = {p: [row for row in rows if row["part"] == p and "strip" in row] for p in parts}
    across = max(len(line) for line in lines.values())
    size = (2.5 * across, 1.5 * len(parts))
    figure, axes = plt.subplots(len(parts), across, figsize=size, squeeze=False)
    colours = plt.get_cmap("gray_r").with_extremes(bad="white")
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (part, line) in enumerate(lines.items()):
        for ax, row in zip(axes[number], line, strict=False):
            ax.imshow(tiled(row["strip"]), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            said = row["way"][1:-1] if row["way"].startswith("(") else row["way"]
            ax.set_title(said, fontsize=8, pad=3)
        axes[number, 0].text(0, 1.38, titles[part], transform=axes[number, 0].transAxes,
                             fontsize=9, fontweight="bold")  # fmt: skip
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, wspace=0.08, hspace=0.65)
    return figure
