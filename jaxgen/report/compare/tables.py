"""A comparison as files for other programs: .csv, .tex, .pdf."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.report import page
from jaxgen.report.compare.figures import Plot
from jaxgen.report.page import number

COLUMNS = ("score", "better", "receipt", "value", "low", "high", "floor", "mark")
_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}


def comma_separated(content: Mapping[str, Any]) -> str:
    """A line for each score of each receipt, with the columns `COLUMNS`; numbers in full.

    low, high: the interval. mark: best, tied or nothing.
    """
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, score in content["scores"].items():
        for label, value in score["values"].items():
            low, high = score["intervals"][label] or (None, None)
            mark, floor = score["best"].get(label), score["floors"][label]
            rows.writerow([name, score["better"], label, value, low, high, floor, mark])
    return buffer.getvalue()


def latex(content: Mapping[str, Any]) -> str:
    r"""A `tabular` for booktabs: receipts in rows, scores in columns, the best in bold.

    Tied ones are underlined, and the last row is the floor where all receipts have the same one.
    Compiles with \usepackage{booktabs} alone.
    """
    scores = content["scores"]
    heads = [
        f"{_escaped(n)} {_ARROWS.get(str(s['better']), '')}".strip() for n, s in scores.items()
    ]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(scores)}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        r"\midrule",
    ]
    for label in content["receipts"]:
        cells = [_cell(score, label) for score in scores.values()]
        lines.append(" & ".join([_escaped(label), *cells]) + r" \\")
    floors = [{number(floor) for floor in score["floors"].values()} for score in scores.values()]
    if any(floor != {""} for floor in floors):
        shared = [floor.pop() if len(floor) == 1 else "" for floor in floors]
        lines += [r"\midrule", " & ".join(["real images", *map(_escaped, shared)]) + r" \\"]
    lines += [
        f"% not measured alike: {' '.join(_difference(each).split())}"
        for each in content["differences"]
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cell(score: Mapping[str, Any], label: str) -> str:
    if label not in score["values"]:
        return ""
    value = _escaped(number(score["values"][label]))
    how = {"best": r"\textbf{%s}", "tied": r"\underline{%s}"}.get(score["best"].get(label, ""))
    return value if how is None else how % value


def _difference(each: Mapping[str, Any]) -> str:
    return f"{', '.join(each['scores'])}: {each['setting']}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def portable(table: str, plots: Sequence[Plot]) -> bytes:
    """A PDF: the table as text, then a page for each plot, with its caption."""
    lines = table.splitlines()
    longest = max(map(len, lines))
    first = page.plot(max(4.6, 0.075 * longest + 0.6), max(1.2, 0.17 * len(lines) + 0.6))
    first.text(0.3 / first.get_figwidth(), 1 - 0.3 / first.get_figheight(), table, va="top",
               family="monospace", fontsize=9)  # fmt: skip
    for figure, caption in plots:
        figure.suptitle("")
        figure.supxlabel(caption, fontsize=7, color="#5c6570", wrap=True)
    return page.pdf([first, *(figure for figure, _ in plots)])
