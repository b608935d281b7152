"""Parts of self-contained HTML pages: style, pictures and plots inline, tables."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

STYLE = """
:root { --ink:#1a1d21; --soft:#5c6570; --line:#e3e6ea; --accent:#2457d6; --back:#fbfbfc }
* { box-sizing: border-box }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--back); margin:0 }
main { max-width:1080px; margin:0 auto; padding:32px 20px 64px }
h1 { font-size:28px; margin:0 0 4px } h2 { font-size:19px; margin:40px 0 12px }
p.sub { color:var(--soft); margin:0 0 24px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px }
.card { background:#fff; border:1px solid var(--line); border-radius:10px; padding:12px 14px }
.card b { display:block; font-size:22px } .card span { color:var(--soft); font-size:13px }
table { border-collapse:collapse; background:#fff; width:100%; font-size:14px }
th,td { border-bottom:1px solid var(--line); padding:6px 10px; text-align:left }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums }
figure { margin:0; background:#fff; border:1px solid var(--line); border-radius:10px; padding:12px }
figure img { width:100%; image-rendering:pixelated; display:block }
figure.plot img { image-rendering:auto }
figcaption { color:var(--soft); font-size:13px; margin-top:8px }
.grids { display:grid; grid-template-columns:repeat(auto-fit,minmax(320px,1fr)); gap:16px }
details { margin-top:8px } pre { background:#fff; border:1px solid var(--line); border-radius:10px;
padding:12px; overflow:auto; font-size:12.5px }
"""


def image(data: bytes, caption: str, kind: str = "") -> str:
    """A figure of a PNG file's bytes, inline. kind: "plot" for what is not made of pixels."""
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure class="{kind}"><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>{html.escape(caption)}</figcaption>'
        "</figure>"
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


def plot(width: float, height: float) -> Figure:
    """An empty matplotlib figure of inches x inches, drawn without a display."""
    matplotlib.use("Agg", force=False)
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


def page(title: str, sections: Sequence[str], style: str = "") -> str:
    """The whole page: `sections` are HTML; style: CSS beside `STYLE`."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
        f"<main>{''.join(sections)}</main></html>"
    )
