"""The report of a run: `report.json`, and `report.html`, one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxgen import __version__
from jaxgen import config as configs
from jaxgen.model import Model
from jaxgen.pictures import png
from jaxgen.scoring import likelihood_line, one_line, title
from jaxgen.training import hosts
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import read_jsonl

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


def write(
    workdir: Path,
    model: Model,
    results: Mapping[str, Any],
    timings: Mapping[str, float],
    grids: Mapping[str, np.ndarray],
    flops_per_image: float,
) -> dict[str, Any]:
    """Write both files (the first of many processes does); returns what `report.json` holds.

    results: "evaluate" and "classify" as `jaxgen.scoring` returns them. timings: seconds.
    flops_per_image: useful floating-point operations to train on one image.
    """
    device = model.parts.mesh.devices.flat[0]
    content = {
        "config": json.loads(configs.to_json(model.parts.config)),
        "images_seen": model.images_seen,
        "steps": model.step,
        "parameters": sum(int(np.prod(a.shape)) for a in jax.tree.leaves(model.params["params"])),
        "ema": model.ema,
        "gflop_per_training_image": flops_per_image / 1e9,
        "timings": {k: round(float(v), 3) for k, v in timings.items()},
        "results": dict(results),
        "device": f"{model.parts.mesh.size} x {device.device_kind}",
        "processes": jax.process_count(),
        "versions": {
            "jaxgen": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not hosts.first():
        return content
    write_atomic(workdir / "report.json", json.dumps(content, indent=2, sort_keys=True))
    curves = _curves(read_jsonl(workdir / "metrics.jsonl"))
    write_atomic(workdir / "report.html", _page(workdir, content, curves, grids, _rows(model)))
    return content


def summary(content: Mapping[str, Any]) -> str:
    """The report as a few lines for the terminal."""
    lines = []
    for receipt in content["results"].get("evaluate", {}).get("receipts", []):
        lines.append(f"{title(receipt)}: {one_line(receipt)}")
    if "likelihood" in content["results"]:
        lines.append(likelihood_line(content["results"]["likelihood"]))
    found = content["results"].get("classify")
    if found:
        lines.append(
            f"generative classifier: {100 * found['accuracy']:.2f} % of {found['images']} "
            f"{found['split']} images, {found['calls_per_image']:.0f} network calls an image, "
            f"{found['seconds']:.1f} s"
        )
    times = ", ".join(
        f"{k} {v:.1f}" for k, v in content["timings"].items() if k != "images_per_second"
    )
    return "\n".join([*lines, f"seconds: {times}"])


def _curves(rows: list[dict[str, Any]]) -> bytes:
    """Loss, gradient norm and throughput against images seen, as PNG bytes."""
    matplotlib.use("Agg", force=False)
    shown = [("loss", "training loss"), ("grad_norm", "gradient norm")]
    shown.append(("images_per_second", "images per second"))
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axis, (key, heading) in zip(figure.subplots(1, 3), shown, strict=True):
        points = [(r["images"], r[key]) for r in rows if key in r and "images" in r]
        if points:
            axis.plot(*zip(*points, strict=True), color="#2457d6", linewidth=1.4)
        axis.set_title(heading, fontsize=10, loc="left")
        axis.set_xlabel("images seen", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        if key == "images_per_second":
            axis.set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _image(data: bytes, caption: str, kind: str = "") -> str:
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure class="{kind}"><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>{html.escape(caption)}</figcaption>'
        "</figure>"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
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


def _rows(model: Model) -> str:
    """What the rows of a grid are."""
    if model.parts.spec.target is not None:
        return "seed 0"
    if model.parts.method.sampler is None:
        return "test images, each above its reconstruction"
    return "a row a class, seed 0"


def _page(
    workdir: Path,
    content: Mapping[str, Any],
    curves: bytes,
    grids: Mapping[str, np.ndarray],
    rows_are: str,
) -> str:
    timings, results = content["timings"], content["results"]
    cards = [
        (f"{content['parameters'] / 1e6:.2f} M", "parameters"),
        (f"{content['images_seen']:,}", "images seen"),
        (f"{timings['images_per_second']:,.0f}", "training images/s"),
        (f"{timings['total']:.0f} s", "whole command"),
    ]
    parts = [
        f"<h1>{html.escape(workdir.name)}</h1>",
        f'<p class="sub">jaxgen {content["versions"]["jaxgen"]}, JAX {content["versions"]["jax"]}, '
        f"{html.escape(content['device'])}, {content['written']}</p>",
        '<div class="cards">',
        *(f'<div class="card"><b>{v}</b><span>{k}</span></div>' for v, k in cards),
        "</div>",
    ]
    if grids:
        parts.append("<h2>Samples</h2><div class=grids>")
        for name, picture in grids.items():
            caption = f"{name.replace('_', ' ')}: {rows_are}, {content['ema']}"
            parts.append(_image(png(picture), caption))
        parts.append("</div>")
    receipts = results.get("evaluate", {}).get("receipts", [])
    if receipts:
        parts.append("<h2>Scores</h2>")
        names = [s["name"] for s in receipts[0]["scores"]]
        floors = {s["name"]: s.get("floor") for s in receipts[0]["scores"]}
        head = ["score", *(title(r) for r in receipts), "train-to-test floor"]
        rows = []
        for name in names:
            values = [
                next((_number(s["value"]) for s in r["scores"] if s["name"] == name), "")
                for r in receipts
            ]
            floor = floors[name]
            rows.append([name, *values, "" if floor is None else _number(floor)])
        parts.append(_table(head, rows))
        for receipt in receipts:
            text = html.escape(json.dumps(receipt, indent=2, sort_keys=True))
            parts.append(
                f"<details><summary>receipt, {title(receipt)}</summary><pre>{text}</pre></details>"
            )
    headings = {"likelihood": "Likelihood", "classify": "Generative classifier"}
    for section, heading in headings.items():
        found = results.get(section)
        if found:
            parts.append(f"<h2>{heading}</h2>")
            keys = [k for k, v in found.items() if isinstance(v, (int, float, str))]
            parts.append(_table(["", "value"], [[k, _number(found[k])] for k in keys]))
    parts += [
        "<h2>Training</h2>",
        _image(curves, "means over each logging period; compilation and pauses excluded", "plot"),
        "<h2>Timings</h2>",
        _table(["", "seconds"], [[k, f"{v:,.2f}"] for k, v in timings.items()]),
        '<p class="sub">One training image counts as '
        f"{content['gflop_per_training_image']:.4f} GFLOP: three forward passes, two operations a "
        "multiply-add.</p>",
        "<h2>Config</h2>",
        f"<pre>{html.escape(json.dumps(content['config'], indent=2, sort_keys=True))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>jaxgen: {html.escape(workdir.name)}</title><style>{STYLE}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
