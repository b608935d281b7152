"""A model's card: README.md with the metadata that hubs of models read, written from the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen import __version__, files
from jaxgen.errors import invalid
from jaxgen.run.model import Model
from jaxgen.scoring import title
from jaxgen.scoring.common import score_line

MOST_CLASSES = 20
"""Class names that a card lists before it counts."""


def check_licence(licence: str | None) -> None:
    """Refuse what is no identifier of a licence. Raises UsageError."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise invalid(
            "--license", licence, "an identifier such as apache-2.0, mit, cc-by-4.0 or other"
        )


def card(
    name: str,
    model: Model,
    *,
    ema: str,
    receipts: Sequence[Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]],
    grids: Sequence[str],
    licence: str | None,
    imported: Mapping[str, str] | None = None,
) -> str:
    """The card as Markdown.

    name: the model's. receipts: of samples (`scoring.common.receipts`). others: receipts of
    classifying and of likelihoods by kind. grids: pictures beside the card. imported: where the
    parameters are from ("from", "layout") of a model that was not trained here.
    """
    setup = model.setup
    config, spec = setup.config, setup.spec
    family = str(config.method["name"])
    params = model.weights(ema)
    count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))
    source = config.data["source"]
    data = str(source if isinstance(source, str) else source["name"]).rsplit(".", 1)[-1]
    origin = f"trained on `{data}`"
    if imported is not None:
        origin = f"imported from `{imported['from']}`, of layout {imported['layout']},"
    what = "a tokenizer of images" if setup.method.sampler is None else "a generative model"
    parts = [
        _metadata(name, data, receipts, others, licence),
        f"# {name}",
        f"`{family}`: {what} with {count:,} parameters, {origin} with jaxgen {__version__}.",
        *_pictures(grids),
        "## Use",
        _use(name, model),
        *_scores(receipts, others),
        "## How it was trained",
        _table(
            {
                "Examples": "x".join(map(str, spec.shape)),
                "Classes": _classes(spec.class_names),
                "Images seen": f"{model.images_seen:,}",
                "Batch": str(setup.data.batch_size),
                "Parameters of": ema,
                "Network": _networks(config.get("model", {})),
                "Data": f"`{data}`",
                "Licence": licence or "not stated",
            }
        ),
        "The whole config is in `config.json`, and a receipt for every score in `receipts/`. "
        "`config.json` has the SHA-256 of every file; `jaxgen pull` compares them.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(
    name: str,
    data: str,
    receipts: Sequence[Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]],
    licence: str | None,
) -> str:
    """The block between dashes, each value as JSON, which YAML reads."""
    dataset = {"type": data, "name": data, "split": "test"}
    results = []
    for receipt in receipts:
        metrics = [
            {"type": s["name"], "name": f"{s['name']}, {title(receipt)}", "value": s["value"]}
            for s in receipt["scores"]
            if isinstance(s["value"], (int, float))
        ]
        task = {"type": "unconditional-image-generation", "name": "Class-conditional generation"}
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    accuracy = others.get("classify", {}).get("accuracy")
    if isinstance(accuracy, (int, float)):
        task = {"type": "image-classification", "name": "Generative classification"}
        metrics = [{"type": "accuracy", "name": "accuracy", "value": accuracy}]
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    said: dict[str, Any] = {
        **({} if licence is None else {"license": licence}),
        "library_name": "jaxgen",
        "tags": ["jaxgen", "jax", "class-conditional", "image-generation"],
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }
    lines = [f"{key}: {files.json_text(value, indent=None)}" for key, value in said.items()]
    return "\n".join(["---", *lines, "---"])


def _use(name: str, model: Model) -> str:
    """The commands that load it."""
    modules = sorted({own.partition(".")[0] for own in model.setup.own})
    options = "".join(f" --trust {module}" for module in modules)
    trust = f", trust={modules}" if modules else ""
    lines = ["```bash", "pip install jaxgen"]
    if model.setup.method.sampler is None:
        lines += [f"jaxgen evaluate --workdir {name}{options}", "```"]
    else:
        lines += [
            f"jaxgen sample --workdir {name} --per_label 8 --out grid.png{options}",
            "```",
            "",
            "```python",
            "import jaxgen",
            "",
            f'images = jaxgen.load("{name}"{trust}).sample(labels=[0, 0, 0]).images',
            "```",
        ]
    if modules:
        lines += ["", f"Its config calls code of {', '.join(modules)}, which you need to have."]
    return "\n".join(lines)


def _scores(
    receipts: Sequence[Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    rows = {}
    for receipt in receipts:
        for score in receipt["scores"]:
            rows[f"{score['name']}, {title(receipt)}"] = score_line(score)
    classify, likelihood = others.get("classify", {}), others.get("likelihood", {})
    if "accuracy" in classify:
        rows["accuracy as a classifier"] = f"{classify['accuracy']:.4f}"
    if "bits_per_dim" in likelihood:
        rows["bits per dimension"] = f"{likelihood['bits_per_dim']:.4f}"
    return ["## Scores", _table(rows)] if rows else []


def _pictures(grids: Sequence[str]) -> list[str]:
    return [f"![{path.rpartition('/')[2].removesuffix('.png')}]({path})" for path in grids]


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|-|-|", *(f"| {k} | {_cell(v)} |" for k, v in rows.items())])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _classes(names: Sequence[str]) -> str:
    more = len(names) - MOST_CLASSES
    shown = ", ".join(names[:MOST_CLASSES])
    return f"{len(names)}: {shown}" + (f" and {more} more" if more > 0 else "")


def _networks(section: Any) -> str:
    found = {"": section} if "name" in section else dict(section)
    return ", ".join(f"`{one['name']}`" for one in found.values()) or "none"
