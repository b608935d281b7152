"""Parts of self-contained HTML pages: style, pictures and plots inline, tables, scores."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

STYLE = """
:root { color-scheme:light dark; --ink:#1a1d21; --soft:#5c6570; --line:#e3e6ea; --accent:#2457d6;
--back:#f6f7f9; --card:#fff; --pale:#e8f0ff; --warn:#fff5f2; --edge:#f0c4b8; --mark:#9aa3ad;
--bad:#e0805f }
@media (prefers-color-scheme:dark) { :root { --ink:#e8eaed; --soft:#a0a8b2; --line:#33383f;
--accent:#7ea6ff; --back:#14161a; --card:#1d2025; --pale:#24324f; --warn:#3a2620; --edge:#6b4438;
--mark:#77808a } figure.plot img { filter:invert(.88) hue-rotate(180deg) } }
* { box-sizing:border-box }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--back); margin:0 }
main { max-width:1080px; margin:0 auto; padding:28px 16px 64px }
h1 { font-size:28px; line-height:1.25; margin:0 0 4px; overflow-wrap:anywhere }
h2 { font-size:20px; margin:44px 0 4px } h3 { font-size:15px; margin:0; overflow-wrap:anywhere }
p { margin:0 0 12px } p.sub,.note,figcaption { color:var(--soft) }
.note,figcaption { font-size:13px }
.grids + .note,figure + .note { margin-top:12px } figcaption { margin-top:8px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(140px,1fr)); gap:12px }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px;
padding:12px 14px }
.card b { display:block; font-size:22px; line-height:1.3 } .card span { color:var(--soft);
font-size:13px }
table { border-collapse:collapse; background:var(--card); width:100%; font-size:14px }
th,td { border-bottom:1px solid var(--line); padding:6px 10px; text-align:left;
overflow-wrap:anywhere }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px;
padding:12px; min-width:0 }
figure img { width:100%; image-rendering:pixelated; display:block }
figure.plot img { image-rendering:auto }
.grids { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr)); gap:16px;
align-items:start }
details { margin-top:12px } summary { cursor:pointer; padding:4px 0 }
pre { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px;
overflow:auto; font-size:12.5px; margin:8px 0 }
.wide { overflow-x:auto }
"""

FRAMED = """
.framed { display:grid; grid-template-columns:auto minmax(0,1fr); column-gap:8px }
.framed .names { display:grid; grid-auto-rows:minmax(0,1fr); font-size:12px; line-height:1;
max-width:104px; min-height:0 }
.framed .names span { align-self:center; white-space:nowrap; overflow:hidden;
text-overflow:ellipsis; padding:1px 0 }
.framed .heads { grid-column:2; display:grid; grid-auto-flow:column;
grid-auto-columns:minmax(0,1fr);
font-size:12px; text-align:center; color:var(--soft); margin-bottom:3px }
.framed .crop { grid-column:2; min-width:0 } .framed .crop:first-child { grid-column:1/3 }
.framed .crop img,.framed .heads { max-width:calc(3px * var(--wide)) }
figure.narrow { max-width:680px }
.framed .crop img { background:repeating-conic-gradient(#b8bdc3 0 25%,#dfe2e5 0 50%) 0 0/16px 16px }
"""

SCORES = """
.scores { display:grid; gap:12px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr)) }
.score { background:var(--card); border:1px solid var(--line); border-radius:10px;
padding:12px 14px; min-width:0 }
.score header { display:flex; flex-wrap:wrap; gap:2px 10px; align-items:baseline }
.score h3 { font-family:ui-monospace,monospace } .score header span { color:var(--accent);
font-size:13px; white-space:nowrap }
.score p { color:var(--soft); font-size:13.5px; margin:2px 0 8px }
.row { display:grid; grid-template-columns:minmax(0,7.6em) minmax(0,8em) minmax(0,1fr);
gap:0 10px; align-items:center; padding:4px 0; border-top:1px solid var(--line); font-size:14px }
.row .who { overflow-wrap:anywhere; line-height:1.25; font-size:13px }
.row b,.row small { display:block;
font-variant-numeric:tabular-nums; line-height:1.3; white-space:nowrap }
.row small { color:var(--soft); font-size:12px } .row.floor .who,.row.floor b { color:var(--soft);
font-weight:400 }
.axis { position:relative; height:16px } .axis i { position:absolute; display:block }
.axis .span { top:6px; height:4px; border-radius:2px; background:var(--accent); opacity:.4;
min-width:2px } .axis .at { top:3px; width:10px; height:10px; margin-left:-5px; border-radius:5px;
background:var(--accent) } .axis .least { top:0; bottom:0; width:0; height:16px;
border-left:2px dashed var(--mark); margin-left:-1px }
.row.floor .at { background:var(--mark) }
.warn { background:var(--warn); border:1px solid var(--edge); border-radius:10px;
padding:10px 14px; font-size:14px; margin:0 0 8px; overflow-wrap:anywhere }
table.confusion { width:auto; font-size:12.5px } .confusion th,.confusion td {
overflow-wrap:normal } .confusion th,.confusion td { padding:4px 2px;
text-align:center; min-width:27px; border:1px solid var(--line);
font-variant-numeric:tabular-nums } .confusion th { font-weight:500; color:var(--soft) }
.confusion tbody th { text-align:left; white-space:nowrap; max-width:110px;
overflow:hidden; text-overflow:ellipsis }
"""

SLIDERS = """
.controls { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr));
gap:8px 24px; margin:8px 0 12px } .controls[hidden] { display:none }
.controls input { width:100%; accent-color:var(--accent); margin:2px 0 }
.controls output { font-weight:650 }
.sliders { overflow-x:auto } .sliders:not(.live) .framed { min-width:640px }
.live .heads,.live .names { display:none }
.live .framed { display:block } .live .crop { overflow:hidden; aspect-ratio:var(--shape) }
.live .crop img { width:calc(100% * var(--columns)); max-width:none;
transform:translate(calc(-100% / var(--columns) * var(--x,0)),
calc(-100% / var(--rows) * var(--y,0))) }
@media (min-width:760px) { .live { display:grid; gap:4px 24px; align-items:start;
grid-template-columns:minmax(0,1fr) minmax(0,1.6fr); grid-template-rows:auto 1fr }
.live .controls { grid-template-columns:1fr; margin-top:0 } .live .framed { grid-area:1/2/3/3 } }
"""

SCRIPT = """
for (const box of document.querySelectorAll(".sliders")) {
  const [column, row] = box.querySelectorAll("input"), crop = box.querySelector(".crop")
  const show = () => {
    crop.style.setProperty("--x", column.value); crop.style.setProperty("--y", row.value)
    for (const input of [column, row])
      input.parentNode.querySelector("output").value = JSON.parse(input.dataset.names)[input.value]
  }
  column.oninput = row.oninput = show
  box.querySelector(".controls").hidden = false
  box.classList.add("live"); show()
}
"""

ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better", "zero": "→ 0 is best"}
MOST = 20
"""Classes of a confusion that is shown as a matrix."""
LIGHT = 1_000_000
"""Bytes of a picture that is inline as it is; a larger one is WebP, of high quality."""


def inline(data: bytes) -> str:
    """A picture's file as the address of an `img`."""
    kind = "png"
    if len(data) > LIGHT:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(data)) as picture:
            # The format's longest side.
            if max(picture.size) <= 16_383:
                picture.save(buffer, format="WEBP", quality=90)
                kind, data = "webp", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes, caption: str, kind: str = "") -> str:
    """A figure of a PNG file's bytes, inline. kind: "plot" for what is not made of pixels."""
    return (
        f'<figure class="{kind}"><img alt="{html.escape(caption)}" src="{inline(data)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def framed(
    data: bytes,
    caption: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    kind: str = "",
) -> str:
    """As `image`, of a grid whose rows have names at their left and whose columns have heads."""
    return (
        f'<figure class="{kind}">{_frame(data, caption, rows, columns)}{_below(caption)}</figure>'
    )


def _below(caption: str) -> str:
    return f"<figcaption>{html.escape(caption)}</figcaption>"


def _frame(data: bytes, alt: str, rows: Sequence[str], columns: Sequence[str]) -> str:
    def spans(names: Sequence[str]) -> str:
        return "".join(f'<span title="{html.escape(n)}">{html.escape(n)}</span>' for n in names)

    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    down, across = max(1, len(rows)), max(1, len(columns))
    # Of one cell: width over height.
    shape = f"--columns:{across};--rows:{down};--shape:{width * down}/{height * across}"
    # Few small images are not shown as large as the page.
    shape += f";--wide:{width}"
    heads = f'<div class="heads">{spans(columns)}</div>' if columns else ""
    names = f'<div class="names">{spans(rows)}</div>' if rows else ""
    return (
        f'<div class="framed" style="{shape}">{heads}{names}<div class="crop">'
        f'<img alt="{html.escape(alt)}" src="{inline(data)}"></div></div>'
    )


def sliders(
    data: bytes, caption: str, rows: Sequence[str], columns: Sequence[str], first: str
) -> str:
    """A grid of which two sliders show one cell; without scripts, all of it with names and heads.

    rows: classes. columns: weights of guidance, of which `first` is shown first.
    """

    def slider(title: str, names: Sequence[str], at: int) -> str:
        told = html.escape(json.dumps(list(names)))
        return (
            f"<label>{title} <output>{html.escape(names[at])}</output>"
            f'<input type="range" min="0" max="{len(names) - 1}" step="1" value="{at}" '
            f'data-names="{told}"></label>'
        )

    start = list(columns).index(first) if first in columns else 0
    controls = slider("Guidance", columns, start) + slider("Class", rows, 0)
    return (
        f'<figure class="sliders"><div class="controls" hidden>{controls}</div>'
        f"{_frame(data, caption, rows, columns)}{_below(caption)}</figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; every column but the first is aligned as numbers are."""
    top = "".join(
        f'<th class="{"n" if i else ""}">{html.escape(h)}</th>' for i, h in enumerate(head)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n" if i else ""}">{html.escape(str(c))}</td>' for i, c in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def folded(title: str, inside: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{html.escape(title)}</summary>{inside}</details>"


def number(value: Any, digits: int = 4) -> str:
    """A number to so many significant digits; whole numbers whole; words as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,d}" if isinstance(value, int) else f"{value:.{digits}g}"


def spread(score: Mapping[str, Any], digits: int = 4) -> str:
    """The interval of a score, else its standard error, else nothing."""
    if score.get("interval"):
        low, high = score["interval"]
        return f"{number(low, digits)} to {number(high, digits)}"
    return f"± {number(score['error'], digits)}" if score.get("error") is not None else ""


def score(name: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """A score: which way is better, what it tells, and a row for each value and for the floor.

    values: whose -> {"value", and of "interval", "floor", "floor_of", "better", "says" what there
    is}; floor_is: where it is not of real images. The words are the first one's. Beside each value
    is where it lies among all of them.
    """
    whose = next(iter(values.values()))
    floor = whose.get("floor")
    rows = [(title, each, "") for title, each in values.items()]
    if floor is not None:
        of = f" ({whose['floor_of']})" if whose.get("floor_of") else ""
        rows.append((whose.get("floor_is", f"real images{of}"), {"value": floor}, " floor"))
    ends = [e for _, each, _ in rows for e in (each["value"], *(each.get("interval") or ()))]
    shown = [float(e) for e in ends if isinstance(e, (int, float)) and math.isfinite(e)]
    low, width = min(shown, default=0.0), max(shown, default=0.0) - min(shown, default=0.0)

    def place(value: Any) -> float | None:
        """Per cent from the left, with room for the marks."""
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return 4 + 92 * ((value - low) / width if width > 0 else 0.5)

    def axis(each: Mapping[str, Any]) -> str:
        at, least, span = place(each["value"]), place(floor), each.get("interval") or (None, None)
        left, right = place(span[0]), place(span[1])
        marks = "" if least is None else f'<i class="least" style="left:{least:.1f}%"></i>'
        if left is not None and right is not None:
            marks += f'<i class="span" style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        return marks + ("" if at is None else f'<i class="at" style="left:{at:.1f}%"></i>')

    body = "".join(
        f'<div class="row{kind}"><span class="who">{html.escape(title)}</span>'
        f"<span><b>{html.escape(number(each['value']))}</b>"
        f"<small>{html.escape(spread(each, 3))}</small></span>"
        f'<span class="axis" aria-hidden="true">{axis(each)}</span></div>'
        for title, each, kind in rows
    )
    arrow = ARROWS.get(str(whose.get("better")), "")
    return (
        f'<article class="score"><header><h3>{html.escape(name)}</h3><span>{arrow}</span></header>'
        f"<p>{html.escape(whose.get('says') or '')}</p>{body}</article>"
    )


def confusion(pairs: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion (`metrics.scores.confusion`) as a matrix, of many classes its mistakes."""
    if len(names) > MOST:
        wrong = [(names[y], names[z], f"{n:,}") for y, z, n in pairs if y != z][:MOST]
        return table(["asked for", "taken for", "samples"], wrong)
    counts = {(y, z): n for y, z, n in pairs}
    numbered = [str(i) if name != str(i) else name for i, name in enumerate(names)]
    head = "".join(
        f'<th scope="col" title="{html.escape(name)}">{n}</th>'
        for n, name in zip(numbered, names, strict=True)
    )
    rows = []
    for y, name in enumerate(names):
        total = max(1, sum(counts.get((y, z), 0) for z in range(len(names))))
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--{"accent" if y == z else "bad"}) '
            f'{55 * counts.get((y, z), 0) / total:.0f}%,transparent)">'
            f"{counts.get((y, z), 0) or ''}</td>"
            for z in range(len(names))
        )
        title = name if name == numbered[y] else f"{numbered[y]} {name}"
        rows.append(f'<tr><th scope="row">{html.escape(title)}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="confusion"><thead><tr><th rowspan="2">asked for</th>'
        f'<th colspan="{len(names)}">taken for</th></tr>'
        f"<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def plot(width: float, height: float) -> Figure:
    """An empty matplotlib figure of inches x inches, which needs no display and no backend."""
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure, dpi: int = 130) -> bytes:
    """A matplotlib figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    _plain(figure).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def pdf(figures: Sequence[Figure]) -> bytes:
    """matplotlib figures as a PDF file's bytes, a page each, with text that can be searched."""
    from matplotlib.backends.backend_pdf import PdfPages

    buffer = io.BytesIO()
    # Type 42: text as text, which journals ask for; no date, so that the same is the same file.
    with (
        matplotlib.rc_context({"pdf.fonttype": 42}),
        PdfPages(buffer, metadata={"CreationDate": None}) as pages,
    ):
        for figure in figures:
            pages.savefig(_plain(figure))
    return buffer.getvalue()


def _plain(figure: Figure) -> Figure:
    """The figure without formulas: a run may be called a$b."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def page(title: str, sections: Sequence[str], style: str = "", script: str = "") -> str:
    """The whole page: `sections` are HTML; style: CSS beside `STYLE`; script: at its end."""
    scripted = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(sections)}</main>{scripted}</body></html>"
    )
