"""The report of a run: `report.json`, and `report.html`, one self-contained page."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxgen import __version__
from jaxgen import config as configs
from jaxgen.data.pixels import png, text
from jaxgen.files import json_text, read_json
from jaxgen.report.page import image, page, plot, table
from jaxgen.report.page import png as drawn
from jaxgen.report.pictures import bare
from jaxgen.run.model import Model
from jaxgen.scoring import title
from jaxgen.scoring.common import receipts
from jaxgen.training import hosts
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import read_jsonl

FILE = "report.json"
TRAINING = ("setup", "compile", "train", "images_per_second")
"""Timings of the training itself."""


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
    device = model.setup.mesh.devices.flat[0]
    content = {
        "config": json.loads(configs.to_json(model.setup.config)),
        "classes": list(model.setup.spec.class_names),
        "images_seen": model.images_seen,
        "steps": model.step,
        "parameters": sum(int(np.prod(a.shape)) for a in jax.tree.leaves(model.params["params"])),
        "ema": model.ema,
        "gflop_per_training_image": flops_per_image / 1e9,
        "timings": {k: round(float(v), 3) for k, v in timings.items()},
        "results": dict(results),
        "device": f"{model.setup.mesh.size} x {device.device_kind}",
        "processes": jax.process_count(),
        "versions": {
            "jaxgen": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if hosts.first():
        _write(workdir, model, content, grids)
    return content


def rewrite(workdir: Path, model: Model) -> None:
    """Write a run's report again, if it has one, with the receipts that are there now."""
    if not hosts.first() or not (workdir / FILE).is_file():
        return
    content = read_json(workdir / FILE)
    kept, results = receipts(workdir), dict(content.get("results", {}))
    if kept:
        accuracy = kept[0].get("classifier_test_accuracy")
        results["evaluate"] = {"receipts": kept, "classifier_test_accuracy": accuracy}
    for name in ("likelihood", "classify"):
        path = workdir / "receipts" / f"{name}_test.json"
        if path.is_file():
            results[name] = read_json(path)
    grids = {}
    for path in sorted((workdir / "samples").glob("final_*.png")):
        with Image.open(path) as picture:
            shown = bare(np.asarray(picture.convert("RGB")), text(path))
            grids[path.stem.removeprefix("final_")] = shown
    written = {"written": datetime.now(UTC).isoformat(timespec="seconds")}
    _write(workdir, model, content | {"results": results} | written, grids)


def timings(workdir: Path) -> dict[str, float]:
    """What a run's report says of how long its training took; {} without a report."""
    if not (workdir / FILE).is_file():
        return {}
    known = read_json(workdir / FILE).get("timings", {})
    return {key: known[key] for key in TRAINING if key in known}


def _write(
    workdir: Path, model: Model, content: dict[str, Any], grids: Mapping[str, np.ndarray]
) -> None:
    write_atomic(workdir / FILE, json_text(content) + "\n")
    curves = _curves(read_jsonl(workdir / "metrics.jsonl"))
    write_atomic(workdir / "report.html", _page(workdir, content, curves, grids, _rows(model)))


def _curves(rows: list[dict[str, Any]]) -> bytes:
    """Loss, gradient norm and throughput against images seen, as PNG bytes."""
    shown = [("loss", "training loss"), ("grad_norm", "gradient norm")]
    shown.append(("images_per_second", "images per second"))
    figure = plot(11, 2.8)
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
    return drawn(figure)


def _rows(model: Model) -> str:
    """What the rows of a grid are."""
    if model.setup.spec.target is not None:
        return "seed 0"
    if model.setup.method.sampler is None:
        return "test images, each above its reconstruction"
    names = model.setup.spec.class_names
    if names == tuple(str(i) for i in range(len(names))):
        return "a row a class, seed 0"
    return f"a row a class ({', '.join(names[:20])}), seed 0"


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
        (f"{timings.get('total', 0):.0f} s", "whole command"),
    ]
    if "images_per_second" in timings:
        cards.insert(2, (f"{timings['images_per_second']:,.0f}", "training images/s"))
    versions = content["versions"]
    made_by = (
        f"jaxgen {versions['jaxgen']}, JAX {versions['jax']}, {content['device']}, "
        f"{content['written']}"
    )
    body = [
        f"<h1>{html.escape(workdir.name)}</h1>",
        f'<p class="sub">{html.escape(made_by)}</p>',
        '<div class="cards">',
        *(f'<div class="card"><b>{v}</b><span>{k}</span></div>' for v, k in cards),
        "</div>",
    ]
    if grids:
        body.append("<h2>Samples</h2><div class=grids>")
        for name, picture in grids.items():
            caption = f"{name.replace('_', ' ')}: {rows_are}, {content['ema']}"
            body.append(image(png(picture), caption))
        body.append("</div>")
    receipts = results.get("evaluate", {}).get("receipts", [])
    if receipts:
        body.append("<h2>Scores</h2>")
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
        body.append(table(head, rows))
        for receipt in receipts:
            text = html.escape(json.dumps(receipt, indent=2, sort_keys=True))
            body.append(
                f"<details><summary>receipt, {title(receipt)}</summary><pre>{text}</pre></details>"
            )
    headings = {"likelihood": "Likelihood", "classify": "Generative classifier"}
    for section, heading in headings.items():
        result = results.get(section)
        if result:
            body.append(f"<h2>{heading}</h2>")
            shown = result | {f"tempered {k}": v for k, v in (result.get("tempered") or {}).items()}
            keys = [k for k, v in shown.items() if isinstance(v, (int, float, str))]
            body.append(table(["", "value"], [[k, _number(shown[k])] for k in keys]))
    body += [
        "<h2>Training</h2>",
        image(curves, "means over each logging period; compilation and pauses excluded", "plot"),
        "<h2>Timings</h2>",
        table(["", "seconds"], [[k, f"{v:,.2f}"] for k, v in timings.items()]),
        '<p class="sub">One training image counts as '
        f"{content['gflop_per_training_image']:.4f} GFLOP: three forward passes, two operations a "
        "multiply-add.</p>",
        "<h2>Config</h2>",
        f"<pre>{html.escape(json.dumps(content['config'], indent=2, sort_keys=True))}</pre>",
    ]
    return page(f"jaxgen: {workdir.name}", body)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
