"""Receipts side by side: a table, a page, and a refusal where scores were not measured alike.

    jaxgen compare runs/a runs/b other/receipt.json --out compare.html

`receipts` reads, `likeness` refuses and ranks, `neighbours`, `page` and `tables` show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.data.pixels import png
from jaxgen.errors import UsageError, invalid
from jaxgen.report.compare.figures import Picture, over_images, planes
from jaxgen.report.compare.likeness import Difference, differences, shared
from jaxgen.report.compare.neighbours import Neighbours, grid_of, nearest_training, pixels
from jaxgen.report.compare.page import made, marked, render
from jaxgen.report.compare.receipts import Entry, entries
from jaxgen.report.compare.tables import comma_separated, latex, portable
from jaxgen.report.page import number
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import read_jsonl, say

__all__ = ["compare", "text"]

FORMS = (".html", ".pdf", ".csv", ".tex")


def compare(
    runs: Sequence[str | Path], out: str | Path = "compare.html", *, force: bool = False
) -> dict[str, Any]:
    """Compare the receipts of runs (workdirs, or receipts' files) and write one file.

    out: .html, a page; .pdf, the table and the plots for a paper; .csv, a line a value; .tex, a
    `tabular` for booktabs.

    Scores of one name must have been measured alike: features, reference, number of samples, k,
    splits, dtype, labels and every other setting that a receipt states; only results, seeds,
    versions and the sampler may differ. force: show what differs instead of refusing it.

    Returns {"out", "receipts": labels, "scores": name -> {"better", "values", "floors",
    "intervals", "best"}, "made": label -> how, "differences": [{"setting", "values", "scores"}],
    "notes"}. Raises UsageError for a run without receipts, a receipt that cannot be read (naming
    it), receipts that share no score, and unlike ones.
    """
    out = Path(out)
    if out.suffix not in FORMS:
        raise invalid("--out", str(out), f"a name that ends in {', '.join(FORMS)}")
    files.check("--out", out)
    if not runs:
        raise invalid("RUN", "nothing", "workdirs, or receipts' files")
    receipts = entries(runs)
    if len(receipts) > 1 and not shared(receipts):
        raise invalid(
            "RUN", ", ".join(e.label for e in receipts), "receipts with a score in common"
        )
    unlike = differences(receipts)
    if unlike:
        lines = "\n".join(f"  {each}" for each in unlike)
        if not force:
            raise UsageError(
                f"compare: these scores were not measured alike:\n{lines}\n"
                "Measure them alike, or use --force to see them side by side all the same."
            )
        say(f"WARNING: not measured alike:\n{lines}")
    curves = {e.run: read_jsonl(e.workdir / "metrics.jsonl") for e in receipts if e.workdir}
    if out.suffix == ".html":
        samples, neighbours, notes = _shown(receipts)
        write_atomic(out, render(receipts, unlike, curves, samples, neighbours, notes))
        for note in notes:
            say(note)
        return _content(receipts, unlike, notes, out)
    content = _content(receipts, unlike, [], out)
    if out.suffix == ".pdf":
        plots = [*over_images(receipts, curves), *planes(receipts)]
        files.write(out, portable(text(content), plots))
    else:
        write_atomic(out, (latex if out.suffix == ".tex" else comma_separated)(content))
    return content


def text(content: dict[str, Any]) -> str:
    """The result of `compare` as a table for a terminal; `*` is best, `~` tied with it."""
    labels = content["receipts"]
    lines = [f"{i}: {label}" for i, label in enumerate(labels, 1)]
    rows = [["", *(f"{i} " for i in range(1, len(labels) + 1)), "floor"]]
    for name, score in content["scores"].items():
        cells = []
        for label in labels:
            mark = {"best": "*", "tied": "~"}.get(score["best"].get(label, ""), " ")
            cells.append(number(score["values"].get(label)) + mark)
        floors = {number(floor) for floor in score["floors"].values()}
        arrow = {"lower": " (lower)", "higher": " (higher)"}.get(str(score["better"]), "")
        rows.append([name + arrow, *cells, floors.pop() if len(floors) == 1 else "differ"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _shown(receipts: Sequence[Entry]) -> tuple[list[Picture], list[Picture], list[str]]:
    """Grids and neighbours of all that have a workdir, and why some are missing."""
    samples: list[Picture] = []
    neighbours: list[Picture] = []
    notes: list[str] = []
    done = set()
    for entry in receipts:
        path = grid_of(entry.workdir, entry.guidance) if entry.workdir else None
        if entry.workdir is None or path is None or path in done:
            continue
        done.add(path)
        data = path.read_bytes()
        try:
            picture = pixels(data, str(path))
            samples.append((data, f"{entry.run}: {path.name}"))
            if path.stem != "final_reconstructions":
                near = nearest_training(entry.workdir, picture)
                neighbours.append((png(near.picture), _caption(f"{entry.run}: {path.name}", near)))
        except UsageError as error:
            notes.append(f"Not shown for {entry.run}: {error}")
    return samples, neighbours, notes


def _caption(what: str, near: Neighbours) -> str:
    among = f"{near.images:,}" if near.searched == near.images else f"{near.searched:,} drawn"
    return (
        f"{what}, and below each row the nearest of {among} training images in pixels. "
        f"Median distance {near.distance:.3g}, of test images {near.fresh:.3g}."
    )


def _content(
    receipts: Sequence[Entry], unlike: Sequence[Difference], notes: list[str], out: Path
) -> dict[str, Any]:
    """What `--json` prints; NaN and infinities as text, as receipts have them."""
    scores = {}
    for name in dict.fromkeys(name for entry in receipts for name in entry.scores):
        having = {e.label: e.scores[name] for e in receipts if name in e.scores}
        scores[name] = {
            "better": next(iter(having.values())).get("better"),
            "values": {label: _said(score["value"]) for label, score in having.items()},
            "floors": {label: _said(score.get("floor")) for label, score in having.items()},
            "intervals": {label: _said(score.get("interval")) for label, score in having.items()},
            "best": marked(receipts, name, unlike),
        }
    return {
        "out": str(out),
        "receipts": [entry.label for entry in receipts],
        "scores": scores,
        "made": {entry.label: made(entry) for entry in receipts},
        "differences": [each._asdict() for each in unlike],
        "notes": notes,
    }


def _said(value: Any) -> Any:
    """What JSON takes: numbers that are not finite as text."""
    if isinstance(value, list):
        return [_said(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
