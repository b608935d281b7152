"""Score and classify with a trained model, and write the receipts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__
from jaxgen import config as configs
from jaxgen.classify import classify as classify_images
from jaxgen.data import normalise, whole
from jaxgen.errors import invalid
from jaxgen.metrics import Sampling, Training, cached
from jaxgen.metrics.evaluate import evaluate as score
from jaxgen.metrics.receipt import receipt
from jaxgen.model import Model, balanced_labels
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import progress, say

Check = Callable[[], None]


def evaluate(
    model: Model,
    workdir: str | Path,
    *,
    samples: int | None = None,
    guidance: Sequence[float] | None = None,
    ema: str | None = None,
    seed: int | None = None,
    check: Check = lambda: None,
    **changes: Any,
) -> dict[str, Any]:
    """Scores of balanced samples at each guidance scale, with floors and receipts.

    None: as the config's `evaluate` section says. changes: keywords of the method's sampler. Writes
    `receipts/evaluate_guidance_W.json`; returns {"receipts": [...], "classifier_test_accuracy"}.
    """
    parts, options = model.parts, model.parts.evaluate
    count = options.samples if samples is None else samples
    if count < 1:
        raise invalid("--samples", count, "images >= 1")
    seed = options.seed if seed is None else seed
    check()
    train, test = whole(parts.source), whole(parts.test_source)
    say("classifier for the scores: training, or from the cache")
    network = cached(
        Path(workdir) / "classifier.safetensors",
        train["image"],
        train["label"],
        parts.spec.num_classes,
        training=Training(flip=parts.data.flip),
    )
    accuracy = network.accuracy(test["image"], test["label"])
    say(f"classifier: {100 * accuracy:.2f} % of the test half right")
    labels = balanced_labels(count, parts.spec.num_classes)
    receipts = []
    for scale in options.guidance if guidance is None else guidance:
        check()
        made = model.sample(
            labels, seed=seed, ema=ema, check=check, show=True, guidance=scale, **changes
        )
        check()
        scores = score(made.images, labels, train, test, network, seed=seed)
        sampling = Sampling(
            labels="balanced",
            seed=seed,
            solver=_name(made.options.get("solver", "the method's default")),
            steps=made.steps,
            nfe=made.calls,
            guidance=scale,
            ema=made.ema,
            dtype=str(dict(parts.config.model).get("dtype", "float32")),
        )
        found = receipt(
            scores,
            sampling,
            data=configs.to_dict(parts.config.data),
            extra={
                "guidance": scale,
                "images_seen": model.images_seen,
                "classifier_test_accuracy": accuracy,
                "images_per_second": made.images_per_second,
            },
        )
        _write(workdir, f"evaluate_guidance_{scale:g}", found)
        receipts.append(found)
        say(f"guidance {scale:g}: {one_line(found)}")
    return {"receipts": receipts, "classifier_test_accuracy": accuracy}


def one_line(found: Mapping[str, Any]) -> str:
    """A receipt's scores in one line, each with its floor."""
    return ", ".join(
        f"{s['name']} {s['value']:.4g}"
        + ("" if s["floor"] is None else f" (floor {s['floor']:.4g})")
        for s in found["scores"]
        if isinstance(s["value"], (int, float))
    )


def _name(section: Any) -> str:
    return section if isinstance(section, str) else str(dict(section).get("name"))


def classify(
    model: Model,
    workdir: str | Path,
    *,
    split: str = "test",
    draws: int | None = None,
    limit: int | None = None,
    ema: str | None = None,
    seed: int | None = None,
    check: Check = lambda: None,
) -> dict[str, Any]:
    """Accuracy of the generative classifier on a split, with its cost.

    split: "train" or "test", the config's names of the halves. None: as the config's `classify`
    section says. Writes `receipts/classify_SPLIT.json` and returns what it holds.
    """
    parts, options = model.parts, model.parts.classify
    if parts.method.label_error is None:
        raise invalid("classify", "a method without a likelihood", "families that can classify")
    draws = options.draws if draws is None else draws
    limit = options.limit if limit is None else limit
    seed = options.seed if seed is None else seed
    if limit < 0:
        raise invalid("--limit", limit, "images >= 1, or 0 for all")
    source = parts.source if split == "train" else parts.test_source
    # A random part, not the first: sources are often sorted by class.
    order = np.random.default_rng(seed).permutation(len(source))[: limit or None]
    params = jax.device_put(model.weights(ema))
    root = jax.random.key(seed)
    right, calls, size = 0, 0.0, options.batch_size
    start = time.monotonic()
    with progress("classify", len(order)) as advance:
        for first in range(0, len(order), size):
            check()
            chosen = order[first : first + size]
            images = normalise({"image": jnp.asarray(source.images(chosen))})["image"]
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
            found = classify_images(
                parts.method, params, np.asarray(images), keys, draws=draws, batch=1000
            )
            right += int((found.labels == source.labels[chosen]).sum())
            calls += found.calls * len(chosen)
            done = first + len(chosen)
            advance(done, f"accuracy {100 * right / done:.2f} %")
    result = {
        "split": split,
        "images": len(order),
        "accuracy": right / len(order),
        "draws": draws,
        "calls_per_image": calls / len(order),
        "seconds": time.monotonic() - start,
        "seed": seed,
        "ema": ema or model.ema,
        "images_seen": model.images_seen,
        "jaxgen": __version__,
        "jax": jax.__version__,
    }
    _write(workdir, f"classify_{split}", result)
    return result


def _write(workdir: str | Path, name: str, content: Any) -> None:
    path = Path(workdir) / "receipts" / f"{name}.json"
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
