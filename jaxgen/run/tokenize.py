"""Write a data set's codes once, for a second stage to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import files
from jaxgen.data import Source, codes
from jaxgen.errors import invalid
from jaxgen.run.model import Model, digest
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import progress, say


def tokenize(
    model: Model,
    workdir: str | Path,
    out: str | Path,
    *,
    ema: str | None = None,
    flips: bool = False,
    batch_size: int = 256,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Encode both halves of a tokenizer's data to `out`; returns what `codes.json` says.

    flips: the codes of the mirrored images too, so that a second stage can use data.flip. Latents
    get a scale and a shift that make the training half's mean 0 and variance 1. Codes that are
    already there are left as they are if this tokenizer made them, else it is an error.
    """
    code = model.setup.method.code
    if code is None:
        raise invalid("--workdir", str(workdir), "the workdir of a tokenizer")
    if jax.process_count() > 1:
        raise invalid("config.hosts.count", jax.process_count(), "1: one process writes the codes")
    folder, name = files.local("--out", out), ema or model.ema
    made_by = {
        "tokenizer": str(Path(workdir).resolve()),
        "ema": name,
        "digest": digest(model.weights(name)),
        "images_seen": model.images_seen,
    }
    if (folder / "codes.json").is_file():
        there = codes.read_about(folder)
        if there["digest"] != made_by["digest"] or there["flips"] != flips:
            raise invalid("--out", str(out), "an empty folder, or codes of this very tokenizer")
        say(f"{folder} holds these codes already")
        return there
    files.folder(folder)
    kind = "tokens" if code.tokens else "latents"
    splits, moments = {}, np.zeros(3)
    for split, source in (("train", model.setup.source), ("test", model.setup.test_source)):
        rounds = 1 + flips
        with progress(f"tokenize {split}", len(source) * rounds) as advance:

            def encoded(
                source: Source = source,
                split: str = split,
                rounds: int = rounds,
                advance: Callable[..., None] = advance,
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
                done = 0
                for mirrored in range(rounds):
                    for first in range(0, len(source), batch_size):
                        check()
                        rows = np.arange(first, min(first + batch_size, len(source)))
                        images = source.images(rows)
                        images = images[:, :, ::-1] if mirrored else images
                        found = model.encode(images, ema=name, batch_size=batch_size)
                        if kind == "latents" and split == "train":
                            mean, std = np.split(found.astype(np.float64), 2, axis=-1)
                            moments[:] += mean.size, mean.sum(), (mean**2 + std**2).sum()
                        yield source.labels[rows], found
                        done += len(rows)
                        advance(done)

            splits[split] = codes.write_split(folder, split, kind, encoded()) // rounds
    scale, shift = 1.0, 0.0
    if kind == "latents":
        shift = float(moments[1] / moments[0])
        scale = float((moments[2] / moments[0] - shift**2) ** -0.5)
    text = codes.about(
        kind=kind,
        shape=code.shape,
        levels=code.levels,
        class_names=model.setup.spec.class_names,
        splits=splits,
        flips=flips,
        scale=scale,
        shift=shift,
        **made_by,
    )
    write_atomic(folder / "codes.json", text + "\n")
    say(f"{splits['train']} + {splits['test']} codes {code.shape} -> {folder}")
    return {**codes.read_about(folder), "out": str(folder)}
