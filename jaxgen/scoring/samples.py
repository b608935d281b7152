"""Scores of a model's samples, or of a tokenizer's reconstructions, with receipts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import config as configs
from jaxgen.data import whole
from jaxgen.errors import invalid
from jaxgen.metrics import Sampling, Training, cached, extractors
from jaxgen.metrics.evaluate import evaluate as score
from jaxgen.metrics.receipt import receipt
from jaxgen.metrics.reconstruction import reconstruction
from jaxgen.model import Model, Samples, balanced_labels
from jaxgen.scoring.common import Check, local, write
from jaxgen.training import hosts
from jaxgen.training.log import say


def evaluate(
    model: Model,
    workdir: str | Path,
    *,
    samples: int | None = None,
    guidance: Sequence[float] | None = None,
    ema: str | None = None,
    seed: int | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    check: Check = lambda: None,
    **changes: Any,
) -> dict[str, Any]:
    """Scores of balanced samples at each guidance scale, with floors and receipts.

    None: as the config's `evaluate` section says; no scales: once, as `sample` says. features: the
    name of an extractor beside the classifier, and its weights (`metrics.extractors.load`).
    changes: keywords of the method's sampler. Of a tokenizer, its reconstructions of the test half
    are scored; of a target, what the family can measure. Writes
    `receipts/evaluate[_guidance_W].json`; returns {"receipts": [...], "classifier_test_accuracy":
    None where nothing was classified}.
    Many processes sample together; the first one scores.
    """
    parts, options = model.parts, model.parts.evaluate
    count = options.samples if samples is None else samples
    if count < 1:
        raise invalid("--samples", count, "images >= 1")
    seed = options.seed if seed is None else seed
    others = [extractors.load(features, weights)] if features not in (None, "classifier") else []
    check()
    accuracy = None
    if parts.spec.target is None:
        real = model.tokenizer.parts if model.tokenizer is not None else parts
        train, test = whole(real.source), whole(real.test_source)
        say("classifier for the scores: training, or from the cache")
        if hosts.first():
            network = cached(
                Path(workdir) / "classifier.safetensors",
                train["image"],
                train["label"],
                parts.spec.num_classes,
                training=Training(flip=parts.data.flip),
            )
            accuracy = float(network.accuracy(test["image"], test["label"]))
        accuracy = hosts.tell(accuracy)
        say(f"classifier: {100 * accuracy:.2f} % of the test half right")
    scales: Sequence[float | None] = (options.guidance if guidance is None else guidance) or (None,)
    receipts = []
    for scale in scales:
        check()
        asked = {**changes, **({} if scale is None else {"guidance": scale})}
        scores: dict[str, Any] = {}
        speed: dict[str, Any] = {}
        if parts.spec.target is None:
            if parts.method.sampler is None:
                images, labels, how = _reconstructions(model, test, ema)
                scores |= reconstruction(images, test["image"])
            else:
                labels = balanced_labels(count, parts.spec.num_classes)
                made = model.sample(labels, seed=seed, ema=ema, check=check, show=True, **asked)
                images, how = made.images, _sampling(made, seed)
                speed["images_per_second"] = made.images_per_second
            check()
            if hosts.first():
                scores |= score(images, labels, train, test, network, extractors=others, seed=seed)
        else:
            how = Sampling(seed=seed, ema=ema or model.ema)
        if parts.method.scores is not None:
            own = parts.method.scores(local(model.weights(ema)), jax.random.key(seed))
            scores |= {k: {"value": float(v), "floor": None} for k, v in own.items()}
        found = receipt(
            scores,
            dataclasses.replace(how, dtype=_dtype(parts.config.get("model", {}))),
            data=configs.to_dict(parts.config.data),
            extra={
                "guidance": scale,
                "images_seen": model.images_seen,
                "classifier_test_accuracy": accuracy,
                **speed,
            },
        )
        found = hosts.tell(found)
        name = "evaluate" if scale is None else f"evaluate_guidance_{scale:g}"
        write(workdir, name, found)
        receipts.append(found)
        say(f"{title(found)}: {one_line(found)}")
    return {"receipts": receipts, "classifier_test_accuracy": accuracy}


def _sampling(made: Samples, seed: int) -> Sampling:
    options = dict(made.options)
    solver = options.pop("solver", None)
    return Sampling(
        labels="balanced",
        seed=seed,
        solver=None if solver is None else _name(solver),
        steps=made.steps,
        nfe=made.calls,
        guidance=options.pop("guidance", None),
        ema=made.ema,
        options=configs.to_dict(options),
    )


def _reconstructions(
    model: Model, test: Mapping[str, np.ndarray], ema: str | None
) -> tuple[np.ndarray, np.ndarray, Sampling]:
    images = model.decode(model.encode(test["image"], ema=ema), ema=ema)
    return images, test["label"], Sampling(labels="of the test half", ema=ema or model.ema)


def title(found: Mapping[str, Any]) -> str:
    """What a receipt is of, for a line or a column head."""
    if found["guidance"] is not None:
        return f"guidance {found['guidance']:g}"
    return "reconstructions" if found["sampling"]["labels"] == "of the test half" else "samples"


def one_line(found: Mapping[str, Any]) -> str:
    """A receipt's scores in one line, each with its floor."""
    return ", ".join(
        f"{s['name']} {s['value']:.4g}"
        + ("" if s["floor"] is None else f" (floor {s['floor']:.4g})")
        for s in found["scores"]
        if isinstance(s["value"], (int, float))
    )


def _dtype(model: Any) -> str:
    """The compute dtype of a model section, or of the first network of several."""
    found = dict(model)
    if "name" not in found and found:
        return _dtype(next(iter(found.values())))
    return str(found.get("dtype", "float32"))


def _name(section: Any) -> str:
    return section if isinstance(section, str) else str(dict(section).get("name"))
