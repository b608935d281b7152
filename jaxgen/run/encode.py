"""Write a frozen encoder's features of a data set once, for methods to train with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxgen import config as configs
from jaxgen import files
from jaxgen.data import Source, Target, normalise
from jaxgen.data.features import hashes
from jaxgen.errors import UsageError, invalid
from jaxgen.files import local
from jaxgen.run.setup import DataOptions, open_source
from jaxgen.training.log import progress, say

Check = Callable[[], None]


def encode(
    config: ml_collections.ConfigDict,
    encoder: Any,
    out: str | Path,
    *,
    flips: bool = False,
    batch_size: int = 256,
    check: Check = lambda: None,
) -> dict[str, Any]:
    """Features [N, D] of both halves of a config's data to `out` (`data.features` has the format).

    Only the section `data` is read. encoder: a section or a name in `jaxgen.frozen.encoders`, of
    examples as methods see them ([-1, 1], or tokens). flips: of the mirrored images too, so that
    data.flip can be used. A test half that is not there is left out, and that is said.
    Raises UsageError for data that cannot be opened, and features that are no finite vectors.
    """
    out = local("--out", out)
    if out.suffix != ".npz":
        raise invalid("--out", str(out), "a name that ends in .npz")
    if batch_size < 1:
        raise invalid("--batch_size", batch_size, "images >= 1")
    apply = configs.part(encoder, configs.ROOMS["encoder"], "--encoder")
    data = DataOptions(**configs.check(DataOptions, dict(config.data), "config.data"))
    program = jax.jit(lambda x: apply(normalise({"image": x})["image"]))
    arrays: dict[str, Any] = {}
    for split in dict.fromkeys((data.train, data.test)):
        try:
            source = open_source(data, split)
        except UsageError as error:
            if split == data.train:
                raise
            say(f"no features of the half {split!r}: {error}")
            continue
        if isinstance(source, Target):
            raise invalid("config.data.source", "a target without examples", "examples to encode")
        if flips and (source.tokens or source.coding is not None):
            raise invalid("--flips", flips, "images: codes cannot be mirrored")
        for name, mirrored in ((split, False), (f"{split}_mirrored", True))[: 1 + flips]:
            arrays[name] = _encoded(program, source, name, mirrored, batch_size, check)
        arrays[f"{split}_hashes"] = hashes(source, np.arange(len(source)))
    files.write_arrays(out, arrays)
    counts = {name: len(a) for name, a in arrays.items() if a.ndim == 2}
    width = arrays[data.train].shape[1]
    say(f"{', '.join(f'{n} {name}' for name, n in counts.items())}: {width} features each -> {out}")
    return {"out": str(out), "features": width, "counts": counts}


def _encoded(
    program: Callable[..., jax.Array],
    source: Source,
    name: str,
    mirrored: bool,
    batch_size: int,
    check: Check,
) -> np.ndarray:
    """Features float32 [N, D] of a source in its order; the last batch goes round to the first."""
    found, count = [], len(source)
    with progress(f"encode {name}", count) as advance:
        for first in range(0, count, batch_size):
            check()
            images = source.images(np.arange(first, first + batch_size) % count)
            images = images[:, :, ::-1] if mirrored else images
            features = np.asarray(program(images), np.float32)
            if features.ndim != 2:
                raise invalid("--encoder", f"features {features.shape[1:]}", "vectors [D]")
            found.append(features[: count - first])
            advance(min(first + batch_size, count))
    whole = np.concatenate(found)
    bad = int((~np.isfinite(whole)).any(1).sum())
    if bad:
        raise invalid("--encoder", f"{bad} of {count} vectors are not finite", "finite features")
    return whole
