"""A run as a folder that travels (`run.portable`), with its receipts, grids and a card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.errors import invalid
from jaxgen.export.card import card, check_licence
from jaxgen.report import pictures
from jaxgen.run import portable, record
from jaxgen.run.model import Model
from jaxgen.scoring.common import receipts
from jaxgen.training.log import say


def export(
    model: Model,
    out: str | Path,
    *,
    ema: str | None = None,
    licence: str | None = None,
    name: str | None = None,
) -> Path:
    """Write a trained model as a folder; `out` is new or empty.

    The model has a workdir, whose receipts and grids come along. ema: whose parameters (None: the
    default average). licence: an identifier, for the card. name: the model's on its card (None: the
    folder's). Of paths in its config and receipts the last word alone is kept. Raises UsageError.
    """
    workdir, out = model.workdir, files.local("--out", out)
    if workdir is None:
        raise invalid("export", "a model that was not loaded", "jaxgen.load(workdir)")
    check_licence(licence)
    portable.check_new("--out", out)
    if model.setup.method.reads:
        given = f"{workdir}, whose sampler reads arrays that are no parameters"
        allowed = "a model of parameters alone"
        raise invalid("--workdir", given, allowed, "Hand over the workdir and those arrays.")
    shown = ema or model.ema
    params = model.weights(ema)
    name = name or out.absolute().name
    contents = _grids(model, workdir, shown) | _receipts(workdir)
    found = list(receipts(workdir).values())
    others = {
        kind: files.read_json(path)
        for kind in ("classify", "likelihood")
        if (path := workdir / "receipts" / f"{kind}_test.json").is_file()
    }
    said = json.loads((workdir / record.FILE).read_text())
    text = card(
        name,
        model,
        ema=shown,
        receipts=found,
        others=others,
        grids=[path for path in contents if path.endswith(".png")],
        licence=licence,
        imported=said.get(record.KEY, {}).get("imported"),
    )
    exported = {"ema": shown, "images": model.images_seen, "step": model.step, "licence": licence}
    with tempfile.TemporaryDirectory() as home:
        tokenizer = _tokenizer(model, Path(home) / portable.TOKENIZER)
        portable.write(
            out,
            bare(said),
            params,
            exported,
            {**contents, "README.md": text.encode()},
            tokenizer,
        )
    if model.setup.own:
        modules = ", ".join(sorted({own.partition(".")[0] for own in model.setup.own}))
        say(f"Its config calls {modules}: whoever loads it needs that code, and --trust {modules}.")
    return out


def bare(value: Any) -> Any:
    """A config or receipt with the last word alone of whatever is a path from the root or home."""
    if isinstance(value, Mapping):
        return {key: bare(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [bare(each) for each in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return os.path.basename(os.path.normpath(value))
    return value


def _tokenizer(model: Model, out: Path) -> Path | None:
    """The folder of what decodes the model's samples; None where they are images."""
    if model.setup.coding is None or model.tokenizer is None:
        return None
    return export(model.tokenizer, out, ema=model.tokenizer.ema, name=portable.TOKENIZER)


def _receipts(workdir: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((workdir / "receipts").glob("*.json")):
        text = files.json_text(bare(files.read_json(path))) + "\n"
        found[f"receipts/{path.name}"] = text.encode()
    return found


def _grids(model: Model, workdir: Path, ema: str) -> dict[str, bytes]:
    """The run's final grids, or one of a few classes that is drawn now."""
    paths = sorted((workdir / "samples").glob("*.png"))
    final = [p for p in paths if p.name.startswith("final_")]
    if final:
        return {f"samples/{path.name}": path.read_bytes() for path in final}
    if model.setup.method.sampler is None:
        return {}
    per, spec = model.setup.train.preview_per_label, model.setup.spec
    labels = np.repeat(np.arange(min(spec.num_classes, 10), dtype=np.int32), per)
    samples = model.sample(labels, ema=ema)
    picture = pictures.picture(spec, samples.images, per)
    text = pictures.caption(spec.class_names, labels, per)
    return {"samples/final_samples.png": pictures.png(picture, text)}
