"""Plots of a comparison: scores over images seen, the precision-recall plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from jaxgen.report import page
from jaxgen.report.compare.receipts import Entry

# Told apart by people who see fewer colours too (Okabe & Ito 2008), our own accent first.
COLOURS = ("#2457d6", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5c6570")
MARKS = "osD^vP*X"

# A PNG file's bytes, and what it shows.
Picture = tuple[bytes, str]
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
) -> list[Picture]:
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


def _curve(name: str, series: Series, colours: Mapping[str, str]) -> bytes:
    def draw(axis: Axes) -> None:
        for label, points in series.items():
            xs, ys = zip(*sorted(points), strict=True)
            colour = colours[label]
            mark = "o" if len(points) < 20 else None
            axis.plot(xs, ys, color=colour, marker=mark, markersize=4, linewidth=1.5, label=label)
        axis.set_title(name, loc="left", fontsize=11)
        axis.set_xlabel("images seen")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))

    return _drawn(draw)


def planes(entries: Sequence[Entry]) -> list[Picture]:
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
) -> bytes:
    def draw(axis: Axes) -> None:
        for i, entry in enumerate(entries):
            x, y = (entry.scores[name] for name in (precision, recall))
            axis.errorbar(
                x["value"], y["value"], xerr=_bars(x), yerr=_bars(y), fmt=MARKS[i % len(MARKS)],
                color=colours[entry.label], markersize=8, label=entry.label, capsize=2,
            )  # fmt: skip
        floors = [[e.scores[name].get("floor") for name in (precision, recall)] for e in entries]
        for left, up in dict.fromkeys(tuple(pair) for pair in floors):
            if left is not None and up is not None:
                axis.plot(left, up, "x", color="#5c6570", markersize=9, markeredgewidth=2)
        axis.set_xlabel(precision)
        axis.set_ylabel(recall)
        axis.margins(0.12)

    return _drawn(draw)


def _bars(score: Mapping[str, Any]) -> list[list[float]] | None:
    """An interval as matplotlib's distances below and above the value."""
    if not score.get("interval"):
        return None
    low, high = score["interval"]
    return [[max(score["value"] - low, 0.0)], [max(high - score["value"], 0.0)]]


def _drawn(draw: Callable[[Axes], None]) -> bytes:
    """A plot that can be read on a phone's width, its legend below."""
    figure = page.plot(4.6, 3.6)
    axis = figure.subplots()
    draw(axis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e3e6ea", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
    figure.legend(loc="outside lower left", fontsize=8.5, frameon=False, ncols=1)
    return page.png(figure, dpi=170)
