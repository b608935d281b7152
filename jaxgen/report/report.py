"""The report of a run: `report.json`, and `report.html`, one self-contained page."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxgen import __version__
from jaxgen import config as configs
from jaxgen.data.pixels import png
from jaxgen.files import json_text, read_json
from jaxgen.report import exhibits
from jaxgen.report.exhibits import Exhibit
from jaxgen.report.page import (
    FRAMED,
    SCORES,
    SCRIPT,
    SLIDERS,
    confusion,
    folded,
    framed,
    image,
    number,
    page,
    plot,
    score,
    sliders,
    table,
)
from jaxgen.report.page import png as drawn
from jaxgen.report.pictures import FINAL, NEAREST
from jaxgen.run.model import Model
from jaxgen.scoring import title
from jaxgen.scoring.classify import measures as measures_of_classify
from jaxgen.scoring.common import receipts
from jaxgen.scoring.likelihood import measures as measures_of_likelihood
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
    missing: Mapping[str, str],
    flops_per_image: float,
) -> dict[str, Any]:
    """Write both files (the first of many processes does); returns what `report.json` holds.

    Pictures are those in the workdir. results: "evaluate" and "classify" as `jaxgen.scoring`
    returns them. timings: seconds. missing: exhibit -> why there is none (`exhibits`).
    flops_per_image: useful floating-point operations to train on one image.
    """
    device = model.setup.mesh.devices.flat[0]
    content = {
        "config": json.loads(configs.to_json(model.setup.config)),
        "classes": list(model.setup.spec.class_names),
        "shape": list(model.setup.spec.shape),
        "images_seen": model.images_seen,
        "steps": model.step,
        "parameters": sum(int(np.prod(a.shape)) for a in jax.tree.leaves(model.params["params"])),
        "ema": model.ema,
        "gflop_per_training_image": flops_per_image / 1e9,
        "timings": {k: round(float(v), 3) for k, v in timings.items()},
        "results": dict(results),
        "missing": dict(missing),
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
        _write(workdir, content)
    return content


def rewrite(workdir: Path) -> None:
    """Write a run's report again, if it has one, with the receipts that are there now."""
    if not hosts.first() or not (workdir / FILE).is_file():
        return
    content = read_json(workdir / FILE)
    found, results = receipts(workdir), dict(content.get("results", {}))
    if found:
        kept = list(found.values())
        accuracy = kept[0].get("classifier_test_accuracy")
        about = {"names": list(found), "classifier_test_accuracy": accuracy}
        results["evaluate"] = {"receipts": kept, **about}
    for name in ("likelihood", "classify"):
        path = workdir / "receipts" / f"{name}_test.json"
        if path.is_file():
            results[name] = read_json(path)
    written = {"written": datetime.now(UTC).isoformat(timespec="seconds")}
    _write(workdir, content | {"results": results} | written)


def timings(workdir: Path) -> dict[str, float]:
    """What a run's report says of how long its training took; {} without a report."""
    if not (workdir / FILE).is_file():
        return {}
    known = read_json(workdir / FILE).get("timings", {})
    return {key: known[key] for key in TRAINING if key in known}


def _write(workdir: Path, content: dict[str, Any]) -> None:
    write_atomic(workdir / FILE, json_text(content) + "\n")
    curves = _curves(read_jsonl(workdir / "metrics.jsonl"))
    write_atomic(workdir / "report.html", _page(workdir, content, curves, exhibits.read(workdir)))


def _curves(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Loss, gradient norm and throughput against images seen: PNG files' bytes, by what it is."""
    shown = {
        "loss": "training loss",
        "grad_norm": "gradient norm",
        "images_per_second": "training images a second",
    }
    plots = {}
    for key, heading in shown.items():
        points = [(r["images"], r[key]) for r in rows if key in r and "images" in r]
        if not points:
            continue
        figure = plot(4.2, 2.8)
        axis = figure.subplots()
        axis.plot(*zip(*points, strict=True), color="#2457d6", linewidth=1.6)
        axis.set_xlabel("images seen", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.tick_params(labelsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if key == "images_per_second":
            axis.set_ylim(bottom=0)
        plots[heading] = drawn(figure)
    return plots


def _page(
    workdir: Path,
    content: Mapping[str, Any],
    curves: Mapping[str, bytes],
    shown: Mapping[str, Exhibit],
) -> str:
    """The whole page. shown: pictures by the names of their files in `samples/`."""
    body = [*_head(workdir, content), *_samples(content, shown), *_scores(content, shown)]
    body += [*_likelihood(content), *_classifier(content)]
    plots = "".join(image(data, heading, "plot") for heading, data in curves.items())
    if plots:
        how = "Means over each logging period; compilation and pauses are left out."
        body += ["<h2>Training</h2>", *_note(how), f'<div class="grids">{plots}</div>']
    body += _settings(content)
    style = FRAMED + SCORES + SLIDERS
    return page(f"jaxgen: {workdir.name}", body, style, SCRIPT if "guidance" in shown else "")


def _head(workdir: Path, content: Mapping[str, Any]) -> list[str]:
    """What was trained, in a sentence and in numbers."""
    timings, config, count = content["timings"], content["config"], content["parameters"]
    cards = [
        (f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}", "parameters"),
        (f"{content['images_seen']:,}", "training images seen"),
        (f"{timings.get('total', 0):,.0f} s", "whole command"),
    ]
    if "images_per_second" in timings:
        cards.insert(2, (f"{timings['images_per_second']:,.0f}", "training images a second"))
    source = _name(config.get("data", {}).get("source"))
    several = len(content["classes"]) > 1
    classes = f"{len(content['classes'])} classes" if several else "one class"
    shape = " x ".join(map(str, content.get("shape", ())))
    data = f"{source} ({', '.join(filter(None, (shape, classes)))})"
    what = f"{_name(config.get('method'))}, trained on {data}; {content['device']}"
    return [
        f"<h1>{html.escape(workdir.name)}</h1>",
        f'<p class="sub">{html.escape(what)}</p>',
        '<div class="cards">',
        *(f'<div class="card"><b>{v}</b><span>{k}</span></div>' for v, k in cards),
        "</div>",
    ]


def _name(section: Any) -> str:
    """The name of a config's section."""
    return str(section.get("name") if isinstance(section, Mapping) else section)


def _samples(content: Mapping[str, Any], shown: Mapping[str, Exhibit]) -> list[str]:
    """Samples beside real images, guidance, and samples on their way."""
    missing, body = content.get("missing", {}), list[str]()
    final = {k.removeprefix(FINAL): e for k, e in shown.items() if k.startswith(FINAL)}
    if final:
        how = f"parameters {content['ema']}"
        figures = [
            framed(png(each.picture), f"{name.replace('_', ' ')}: {each.about['what']}, {how}",
                   each.about.get("rows", ()))
            for name, each in final.items()
        ]  # fmt: skip
        if "real" in shown:
            picture, about = shown["real"]
            figures.append(framed(png(picture), "real images, for comparison", about["rows"]))
        body.append(f'<h2>Samples</h2><div class="grids">{"".join(figures)}</div>')
    if "guidance" in shown:
        picture, about = shown["guidance"]
        caption = (
            "Guidance pulls samples towards the class that was asked for: more of it makes them "
            "clearer and less varied; 0 does without the class, 1 is the model as it was trained. "
            f"The same {about['each']} draws of noise everywhere."
        )
        body.append("<h2>Guidance, class by class</h2>")
        body.append(sliders(png(picture), caption, about["rows"], about["columns"], about["first"]))
    if "trajectory" in shown:
        picture, about = shown["trajectory"]
        caption = (
            "From noise to a sample, column by column: the steps done. So far: what the sampler "
            "holds; expected: the image that it expects to come of it."
        )
        body.append("<h2>How a sample comes about</h2>")
        body.append(framed(png(picture), caption, about["rows"], about["columns"], "narrow"))
    return body + _note(" ".join(missing[name] for name in exhibits.NAMES if name in missing))


def _note(text: str | None) -> list[str]:
    return [] if not text else [f'<p class="note">{html.escape(text)}</p>']


def _scores(content: Mapping[str, Any], shown: Mapping[str, Exhibit]) -> list[str]:
    """Every score of every receipt, what a careful reader should know, copies and confusion."""
    evaluation = content["results"].get("evaluate") or {}
    receipts = evaluation.get("receipts", [])
    if not receipts:
        return []
    body = [
        "<h2>Scores</h2>",
        '<p class="note">The dot is the value, the bar its 95 % interval where the score has one '
        "(1.96 standard errors each way), the dashed line what real images score in the place of "
        "samples.</p>",
    ]
    cautions = dict.fromkeys(
        (f"{title(r)}: " if len(receipts) > 1 else "") + text
        for r in receipts
        for text in r.get("cautions", ())
    )
    body += [f'<p class="warn">{html.escape(text)}</p>' for text in cautions]
    titles = _titles(receipts)
    named = [{s["name"]: s for s in r["scores"]} for r in receipts]
    blocks = [
        score(name, {t: held[name] for t, held in zip(titles, named, strict=True) if name in held})
        for name in dict.fromkeys(name for held in named for name in held)
    ]
    body.append(f'<div class="scores">{"".join(blocks)}</div>')
    left_out = {name: why for r in receipts for name, why in r.get("left_out", {}).items()}
    body += _note(" ".join(f"{name} is left out: {why}" for name, why in left_out.items()))
    body += _nearest(titles, evaluation.get("names", []), shown)
    body += _confusions(titles, named, content["classes"])
    return body


def _titles(receipts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title for each receipt; where some would be the same, numbered."""
    titles = [title(receipt) for receipt in receipts]
    return [
        t if titles.count(t) == 1 else f"{t}, {titles[: i + 1].count(t)}"
        for i, t in enumerate(titles)
    ]


def _nearest(
    titles: Sequence[str], names: Sequence[str], shown: Mapping[str, Exhibit]
) -> list[str]:
    """Samples beside the training images nearest to them."""
    figures = []
    for heading, name in zip(titles, names, strict=False):
        if NEAREST + name not in shown:
            continue
        picture, about = shown[NEAREST + name]
        distances = about["distances"]
        half = len(distances) // 2
        caption = (
            f"{heading}: above, the {half} of {about['samples']:,} samples that are nearest to one "
            f"of the {about['training']:,} training images (distances {number(distances[0])} to "
            f"{number(distances[half - 1])}); below, {half} at even ranks, to the farthest "
            f"({number(distances[-1])}). Fresh real images: {number(about['fresh'])} at the median."
        )
        rows = ("nearest", "training", "spread", "training")
        figures.append(framed(png(picture), caption, rows))
    if not figures:
        return []
    return [
        "<h2>Nearest training images</h2>",
        '<p class="note">Whether the model copies: each sample stands above the training image '
        "whose pixels are nearest to its own.</p>",
        f'<div class="grids">{"".join(figures)}</div>',
    ]


def _confusions(
    titles: Sequence[str], named: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> list[str]:
    """What the classifier of the scores takes samples for."""
    if len(classes) < 2:
        return []
    tables = [
        f"<figure>{confusion(pairs, classes)}"
        f"<figcaption>{html.escape(heading)}</figcaption></figure>"
        for heading, held in zip(titles, named, strict=True)
        if (pairs := (held.get("accuracy_classifier", {}).get("also") or {}).get("confusion"))
    ]
    if not tables:
        return []
    return [
        "<h2>What the classifier takes samples for</h2>",
        '<p class="note">An independent classifier, trained on the real images, looks at the '
        "samples of each class that was asked for.</p>",
        f'<div class="grids">{"".join(tables)}</div>',
    ]


def _likelihood(content: Mapping[str, Any]) -> list[str]:
    """How likely the model finds test images."""
    found = content["results"].get("likelihood")
    if not found:
        return []
    return ["<h2>Likelihood</h2>", _measures(measures_of_likelihood(found)), _rest(found)]


def _classifier(content: Mapping[str, Any]) -> list[str]:
    """How well the model itself classifies."""
    found = content["results"].get("classify")
    if not found:
        return []
    return [
        "<h2>The model as a classifier</h2>",
        _measures(measures_of_classify(found)),
        _rest(found),
    ]


def _measures(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    return f'<div class="scores">{"".join(score(n, v) for n, v in found.items())}</div>'


def _rest(found: Mapping[str, Any]) -> str:
    """All of a result, for who asks."""
    rows = [[k, _number(v)] for k, v in found.items() if isinstance(v, (int, float, str))]
    return folded(
        "all that was measured, and how", f'<div class="wide">{table(["", "value"], rows)}</div>'
    )


def _settings(content: Mapping[str, Any]) -> list[str]:
    """Config, receipts, timings and versions, folded away."""

    def text(value: Any) -> str:
        return f"<pre>{html.escape(json.dumps(value, indent=2, sort_keys=True))}</pre>"

    timings = [[k, f"{v:,.2f}"] for k, v in content["timings"].items() if k != "images_per_second"]
    flops = (
        '<p class="note">One training image counts as '
        f"{content['gflop_per_training_image']:.4f} GFLOP: three forward passes, two operations a "
        "multiply-add.</p>"
    )
    receipts = (content["results"].get("evaluate") or {}).get("receipts", [])
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    return [
        "<h2>Settings</h2>",
        folded("config", text(content["config"])),
        *(
            folded(f"receipt, {heading}", text(receipt))
            for heading, receipt in zip(_titles(receipts), receipts, strict=True)
        ),
        folded("seconds that each part took", table(["", "seconds"], timings) + flops),
        f'<p class="note">{html.escape(versions)}; {html.escape(content["written"])}.</p>',
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
