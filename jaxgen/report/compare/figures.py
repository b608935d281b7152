"""Plots of a comparison: scores over images seen, the precision-recall plane.

What a line or a point is of stands beside it, in its colour, and not in a legend.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from jaxgen.report import page
from jaxgen.report.compare.receipts import Entry

# Told apart by people who see fewer colours too (Okabe & Ito 2008), our own accent first.
COLOURS = ("#2457d6", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5c6570")
MARKS = "osD^vP*X"
WIDE = 20
"""Letters of a line of words beside a curve."""
MANY = 8
"""Points of which each has a name of its own."""
OFFSETS = [sign * 3 * n for n in range(3, 60) for sign in (1, -1)]
"""Where words may stand, in points above or below what they are of, the nearest first."""

# A PNG file's bytes, and what it shows.
Picture = tuple[bytes, str]
# The same of a plot that is not drawn yet.
Plot = tuple[Figure, str]
# (x, y, words, colour): what is said at a point of an axis.
Label = tuple[float, float, str, str]
# label -> points (images seen, value)
Series = dict[str, list[tuple[float, float]]]


def _lines(entries: Sequence[Entry]) -> dict[str, str]:
    """label -> the line that a receipt is a point of: its run, at its guidance of several."""
    scales: dict[str, set[float | None]] = {}
    for entry in entries:
        scales.setdefault(entry.run, set()).add(entry.guidance)
    return {
        e.label: e.run
        if e.guidance is None or len(scales[e.run]) < 2
        else f"{e.run}, guidance {e.guidance:g}"
        for e in entries
    }


def colours(entries: Sequence[Entry]) -> dict[str, str]:
    """label -> its line's colour; line, and run -> its own."""
    lines = _lines(entries)
    several = dict.fromkeys([*lines.values(), *(entry.run for entry in entries)])
    of_line = {line: COLOURS[i % len(COLOURS)] for i, line in enumerate(several)}
    return of_line | {label: of_line[line] for label, line in lines.items()}


def over_images(
    entries: Sequence[Entry], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Plot]:
    """A plot for each score that some run has at two or more numbers of images seen."""
    names = dict.fromkeys(name for entry in entries for name in entry.scores)
    lines, shades = _lines(entries), colours(entries)
    pictures = []
    for name in [*names, "loss"]:
        series: Series = {}
        for entry in entries:
            value = entry.scores[name]["value"] if name in entry.scores else math.nan
            if entry.images_seen is not None and math.isfinite(value):
                point = (float(entry.images_seen), value)
                series.setdefault(lines[entry.label], []).append(point)
        for run, rows in curves.items():
            logged = [
                (row["images"], row[name])
                for row in rows
                if isinstance(row.get(name), (int, float))
                and isinstance(row.get("images"), (int, float))
            ]
            if logged:
                series.setdefault(run, []).extend(logged)
        moves = len({y for points in series.values() for _, y in points}) > 1
        if moves and any(len({x for x, _ in points}) > 1 for points in series.values()):
            caption = f"{name} over training images seen"
            if name == "loss":
                caption += "; it compares runs of one objective only"
            pictures.append((_curve(name, series, shades), caption))
    return pictures


def _curve(name: str, series: Series, colours: Mapping[str, str]) -> Figure:
    def draw(axis: Axes) -> list[Label]:
        ends: list[Label] = []
        for label, points in series.items():
            xs, ys = zip(*sorted(points), strict=True)
            colour = colours[label]
            mark = "o" if len(points) < 20 else None
            axis.plot(xs, ys, color=colour, marker=mark, markersize=4, linewidth=1.5)
            ends.append((xs[-1], ys[-1], label, colour))
        axis.set_title(name, loc="left", fontsize=11)
        axis.set_xlabel("images seen")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        return ends

    return _drawn(draw, _at_ends)


def planes(entries: Sequence[Entry]) -> list[Plot]:
    """Recall over precision, a point a receipt, for every pair of scores that share a suffix."""
    names = dict.fromkeys(name for entry in entries for name in entry.scores)
    pictures = []
    for name in names:
        other = name.replace("precision", "recall", 1)
        if name.startswith("precision") and other in names:
            having = [e for e in entries if name in e.scores and other in e.scores]
            finite = [
                entry
                for entry in having
                if all(math.isfinite(entry.scores[n]["value"]) for n in (name, other))
            ]
            if finite:
                pictures.append((_plane(finite, name, other, colours(entries)),
                                 f"{other} over {name}; up and right is better, the cross is the "
                                 "floor of real images"))  # fmt: skip
    return pictures


def _plane(
    entries: Sequence[Entry], precision: str, recall: str, colours: Mapping[str, str]
) -> Figure:
    def draw(axis: Axes) -> list[Label]:
        # Of many points, the last one of a line stands for it.
        names = {e.label: e.label for e in entries} if len(entries) <= MANY else _lines(entries)
        points: dict[str, Label] = {}
        for i, entry in enumerate(entries):
            shade = colours[entry.label]
            x, y = (entry.scores[name] for name in (precision, recall))
            axis.errorbar(
                x["value"], y["value"], xerr=_bars(x), yerr=_bars(y), fmt=MARKS[i % len(MARKS)],
                color=shade, markersize=8, capsize=2,
            )  # fmt: skip
            points[names[entry.label]] = (x["value"], y["value"], names[entry.label], shade)
        floors = [[e.scores[name].get("floor") for name in (precision, recall)] for e in entries]
        for left, up in dict.fromkeys(tuple(pair) for pair in floors):
            if left is not None and up is not None:
                axis.plot(left, up, "x", color="#5c6570", markersize=9, markeredgewidth=2)
        axis.set_xlabel(precision)
        axis.set_ylabel(recall)
        axis.margins(0.12)
        return list(points.values())

    return _drawn(draw, _beside)


def _bars(score: Mapping[str, Any]) -> list[list[float]] | None:
    """An interval as matplotlib's distances below and above the value."""
    if not score.get("interval"):
        return None
    low, high = score["interval"]
    return [[max(score["value"] - low, 0.0)], [max(high - score["value"], 0.0)]]


def _drawn(
    draw: Callable[[Axes], list[Label]], place: Callable[[Axes, Sequence[Label]], None]
) -> Figure:
    """A plot that can be read on a phone's width. draw says what stands where; place puts it."""
    figure = page.plot(4.6, 3.6)
    axis = figure.subplots()
    labels = draw(axis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e3e6ea", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
    figure.draw_without_rendering()  # so that places in pixels are known
    place(axis, labels)
    return figure


def _written(axis: Axes, label: Label, wide: int) -> Annotation:
    """Words at a point, in lines of `wide` letters, for which the axis does not shrink."""
    x, y, words, colour = label
    text = axis.annotate(
        "\n".join(textwrap.wrap(words, wide) or [words]),
        (x, y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=8.5,
        parse_math=False,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
    text.set_in_layout(False)
    return text


def _at_ends(axis: Axes, labels: Sequence[Label]) -> None:
    """Words to the right of the lines' ends, in the order of the ends, and none on another."""
    labels = sorted(labels, key=lambda label: label[1])
    texts = [_written(axis, label, WIDE) for label in labels]
    inside = axis.get_window_extent()
    boxes = [text.get_window_extent() for text in texts]
    left, right = axis.get_xlim()
    share = min(0.6, (max(box.width for box in boxes) + 12) / inside.width)
    axis.set_xlim(left, left + (max(x for x, *_ in labels) - left) / (1 - share))
    places = [axis.transData.transform((x, y))[1] for x, y, *_ in labels]
    moved: list[float] = []
    for place, box in zip(places, boxes, strict=True):
        # A little apart, as the axis may change by a pixel when it is drawn.
        below = moved[-1] + boxes[len(moved) - 1].height / 2 + 2 if moved else inside.y0
        moved.append(max(place, below + box.height / 2))
    # What was pushed out above goes down again, and takes what is below with it.
    above = inside.y1
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], above - boxes[i].height / 2)
        above = moved[i] - boxes[i].height / 2 - 2
    points = 72 / axis.figure.dpi
    for text, place, to in zip(texts, places, moved, strict=True):
        text.xyann = (7, (to - place) * points)


def _beside(axis: Axes, labels: Sequence[Label]) -> None:
    """Words beside their points: the nearest place in the axis where no words are yet."""
    inside, taken = axis.get_window_extent(), list[Bbox]()
    middle = (inside.x0 + inside.x1) / 2
    for label in labels:
        text = _written(axis, label, 2 * WIDE)
        right = axis.transData.transform(label[:2])[0] > middle
        text.set_horizontalalignment("right" if right else "left")
        for offset in OFFSETS:
            text.xyann = (-7 if right else 7, offset)
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                break
        taken.append(box)
