"""How well a model classifies, and at what cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__
from jaxgen.classify import classify as classify_images
from jaxgen.data import normalise
from jaxgen.errors import invalid
from jaxgen.model import Model
from jaxgen.scoring.common import Check, local, part, write
from jaxgen.training.log import progress


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
    if not parts.method.label_noise:
        draws = min(draws, 1)  # the likelihood is exact: more would say the same again
    limit = options.limit if limit is None else limit
    seed = options.seed if seed is None else seed
    source, order = part(parts, split, limit, seed)
    params = jax.device_put(local(model.weights(ema)))
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
    write(workdir, f"classify_{split}", result)
    return result
