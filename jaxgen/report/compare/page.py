"""The page of a comparison: tables, curves, the precision-recall plane, samples."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.report import page
from jaxgen.report.compare.figures import Picture, colours, over_images, planes
from jaxgen.report.compare.likeness import Difference, best
from jaxgen.report.compare.receipts import Entry
from jaxgen.report.page import number, spread

STYLE = """
main { padding:20px 14px 48px } h1 { font-size:24px; line-height:1.25; overflow-wrap:anywhere }
.wide { overflow-x:auto; border:1px solid var(--line); border-radius:10px; background:var(--card) }
.wide table { font-size:13.5px } .wide tr:last-child td { border-bottom:0 }
.wide th { font-weight:600; vertical-align:bottom; min-width:84px; max-width:150px;
overflow-wrap:anywhere }
.wide td:first-child,.wide th:first-child { position:sticky; left:0; background:var(--card);
min-width:112px; max-width:150px; overflow-wrap:anywhere; box-shadow:1px 0 0 var(--line) }
td small { display:block; color:var(--soft); white-space:nowrap }
td.best { background:var(--pale) } td.best b { color:var(--accent) } td.tied {
background:color-mix(in srgb,var(--pale) 50%,transparent) }
td b { font-weight:650 }
th i.c { display:inline-block; width:10px; height:10px; border-radius:10px; margin-right:5px }
tr.differs td:not(:first-child) { background:var(--warn) }
.warn { background:var(--warn); border:1px solid var(--edge); border-radius:10px;
padding:12px 14px }
.warn h2 { margin:0 0 6px; font-size:16px } .warn ul { margin:6px 0 0; padding-left:18px }
.note { color:var(--soft); font-size:13px; margin:8px 0 0 }
.grids { grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr)) }
"""


def render(
    entries: Sequence[Entry],
    unlike: Sequence[Difference],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    samples: Sequence[Picture],
    neighbours: Sequence[Picture],
    notes: Sequence[str],
) -> str:
    """The page as HTML. curves: run -> the lines of its `metrics.jsonl`.

    samples, neighbours: PNG files' bytes with captions. notes: what could not be shown, and why.
    """
    runs = list(dict.fromkeys(entry.run for entry in entries))
    sections = [
        f"<h1>{html.escape(' vs '.join(runs) if len(runs) < 4 else f'{len(runs)} runs')}</h1>",
        f'<p class="sub">{len(entries)} {"receipts" if len(entries) > 1 else "receipt"}</p>',
    ]
    if unlike:
        items = "".join(f"<li>{html.escape(str(each))}</li>" for each in unlike)
        sections.append(
            '<div class="warn"><h2>Not measured alike</h2>These differ, and the comparison was '
            f"forced. Scores named here cannot be ranked, so none is marked.<ul>{items}</ul></div>"
        )
    sections += ["<h2>Scores</h2>", _scores(entries, unlike)]
    for heading, plots in (
        ("Over images seen", over_images(entries, curves)),
        ("Precision and recall", planes(entries)),
    ):
        if plots:
            drawn = [(page.png(figure, dpi=170), caption) for figure, caption in plots]
            shown = "".join(page.image(data, caption, "plot") for data, caption in drawn)
            sections.append(f'<h2>{heading}</h2><div class="grids">{shown}</div>')
    for heading, grids in (("Samples", samples), ("Nearest training images", neighbours)):
        if grids:
            shown = "".join(page.image(data, caption) for data, caption in grids)
            sections.append(f'<h2>{heading}</h2><div class="grids">{shown}</div>')
    sections += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    sections += ["<h2>How they were made</h2>", _making(entries), "<h2>Receipts</h2>"]
    for entry in entries:
        text = html.escape(json.dumps(entry.receipt, indent=2, sort_keys=True))
        sections.append(
            f"<details><summary>{html.escape(entry.label)}</summary><pre>{text}</pre></details>"
        )
    return page.page(f"jaxgen: {', '.join(runs)}", sections, STYLE)


def marked(entries: Sequence[Entry], name: str, unlike: Sequence[Difference]) -> dict[str, str]:
    """As `best`, of scores that were measured alike; nothing of others."""
    if any(name in each.scores for each in unlike):
        return {}
    return best(entries, name)


def _wide(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways under a first column that stays; cells are HTML."""
    return (
        f'<div class="wide"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(entries: Sequence[Entry], first: str) -> list[str]:
    shade = colours(entries)
    return [
        f"<th>{first}</th>",
        *(
            f'<th class="n"><i class="c" style="background:{shade[e.label]}"></i>'
            f"{html.escape(e.label)}</th>"
            for e in entries
        ),
    ]


def _scores(entries: Sequence[Entry], unlike: Sequence[Difference]) -> str:
    """Scores in rows, receipts in columns, each with its interval and its floor."""
    rows = []
    for name in dict.fromkeys(name for entry in entries for name in entry.scores):
        marks = marked(entries, name, unlike)
        having = [entry.scores[name] for entry in entries if name in entry.scores]
        floors = {number(score.get("floor")) for score in having}
        better = having[0].get("better")
        arrow = {"lower": " ↓", "higher": " ↑"}.get(str(better), "")
        cells = [f"<td>{html.escape(name).replace('_', '_<wbr>')}{arrow}</td>"]
        for entry in entries:
            score = entry.scores.get(name)
            if score is None:
                cells.append('<td class="n"></td>')
                continue
            small = [spread(score)] if spread(score) else []
            if len(floors) > 1 and score.get("floor") is not None:
                small.append(f"floor {number(score['floor'])}")
            value = number(score["value"])
            mark = marks.get(entry.label, "")
            value = f"<b>{value}</b>" if mark == "best" else value
            below = "".join(f"<small>{html.escape(text)}</small>" for text in small)
            cells.append(f'<td class="n {mark}">{value}{below}</td>')
        cells.append(f'<td class="n">{floors.pop() if len(floors) == 1 else ""}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        '<p class="note">↓ lower is better, ↑ higher. Bold on blue: the best; pale blue: its '
        "interval meets the best one's. Floor: the score of real images in place of samples.</p>"
    )
    return _wide([*_head(entries, "score"), '<th class="n">floor</th>'], rows) + note


def _making(entries: Sequence[Entry]) -> str:
    """What may differ: sampler, seeds, versions; rows that do are tinted."""
    rows = []
    table: dict[str, list[str]] = {}
    for place, entry in enumerate(entries):
        for key, value in made(entry).items():
            table.setdefault(key, [""] * len(entries))[place] = value
    for key, values in table.items():
        kind = "differs" if len(set(values)) > 1 else ""
        cells = "".join(f'<td class="n">{html.escape(value)}</td>' for value in values)
        rows.append(f'<tr class="{kind}"><td>{html.escape(key)}</td>{cells}</tr>')
    return _wide(_head(entries, ""), rows)


def made(entry: Entry) -> dict[str, str]:
    """How a receipt's samples came about, as text: what one compares, and versions."""
    sampling = dict(entry.receipt.get("sampling") or {})
    options = sampling.pop("options", None) or {}
    top = {k: entry.receipt.get(k) for k in ("images_seen", "guidance", "images_per_second")}
    versions = {f"version of {k}": v for k, v in (entry.receipt.get("versions") or {}).items()}
    rows = top | sampling | {f"sampler {k}": v for k, v in options.items()}
    for side in ("samples", "reference", "real"):
        said = entry.receipt.get(side)
        rows |= {f"{side} {k}": v for k, v in said.items()} if isinstance(said, dict) else {}
    rows |= {"time": entry.receipt.get("time")} | versions
    return {key: _text(value) for key, value in rows.items() if value is not None}


def _text(value: Any) -> str:
    """A value as text; of a sha256 its beginning, as the receipt below has it whole."""
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    text = number(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
