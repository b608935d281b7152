"""Feature extractors for scores: networks that published numbers were computed with.

    extractor = load("inception")                      # weights of this machine's caches
    extractor = load("dinov2_vitb14", "dinov2_vitb14_pretrain.pth", dtype="bfloat16")
    scores = evaluate(samples, labels, train, test, classifier, extractors=[extractor])

Nothing is downloaded. Each is an `Extractor` of `jaxgen.metrics.sets.side`; the digest that goes
into a score's receipt is the sha256 of the published file of weights, with ", unverified" where
nothing says what it ought to be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from jaxgen.errors import invalid, unknown
from jaxgen.metrics.extractors import clip, dinov2, inception
from jaxgen.metrics.extractors.functions import Identity, from_function
from jaxgen.metrics.sets.side import Extractor

NETWORKS: dict[str, Callable[..., Extractor]] = {
    "inception": inception.extractor,
    **{name: functools.partial(dinov2.extractor, name) for name in dinov2.SIZES},
    "clip_vitl14_336": clip.extractor,
    "clip_vitl14_336_unit": functools.partial(clip.extractor, unit=True),
}


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    dtype: str = "float32",
    batch: int = 64,
) -> Extractor:
    """The extractor of a name: one of `NETWORKS`, "identity", or "module:function" for your own.

    weights: the published file (.pth, .safetensors), or None to look in the caches of PyTorch hub
    and Hugging Face, and among those converted before; for `NETWORKS` alone. dtype: "float32" (its
    products exact on accelerators too) or "bfloat16" (faster; another digest). batch: images at a
    time over all of this process's devices. One's own function takes images uint8 [B, H, W, C] and
    returns features [B, d]. Raises UsageError for an unknown name and for weights that are missing,
    cut short or another network's.
    """
    if name in NETWORKS:
        return NETWORKS[name](weights, dtype=dtype, batch=batch)
    for option, given, default in (("weights", weights, None), ("dtype", dtype, "float32")):
        if given != default:
            raise invalid(option, str(given), f"{default} for {name!r}, which is no network here")
    if name == "identity":
        return Identity()
    if ":" in name:
        return from_function(name, batch)
    raise unknown("extractor", name, [*NETWORKS, "identity", "module:function"])


__all__ = ["NETWORKS", "load"]
