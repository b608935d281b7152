"""`adapters` of a sampler's options: low-rank changes, added to a model with weights.

    adapters="runs/lora"
    adapters={"runs/lora": 0.7, "style.safetensors": 0.4}

A place is the workdir of a run with `tune.lora` (or another wrap that changes parameters before
sampling), a file, or a folder of peft's (`tune.adapters`). Weights may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.files import local
from jaxgen.tune import adapters, lora

PyTree = Any
OPTION = "sample.adapters"


def weights_of(section: Any) -> dict[str, float]:
    """Weight by place. Raises UsageError for what is neither a place nor {place: weight}."""
    found = {section: 1.0} if isinstance(section, str) else section
    if not isinstance(found, Mapping) or not found:
        raise invalid(OPTION, section, "a place, or {place: weight}")
    for place, weight in found.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise invalid(f"{OPTION} {place}", weight, "a finite number")
    return {str(place): float(weight) for place, weight in found.items()}


def added(
    params: PyTree, section: Any, *, model: Callable[[str], Any], heads: int | None
) -> PyTree:
    """Groups with the adapters of a section added. model: loads a workdir's.

    Raises UsageError for an adapter of another network, and for a run without one.
    """
    kept = {k: params[k] for k in ("lora", "frozen") if k in params}
    groups = {k: v for k, v in params.items() if k not in kept}
    for place, weight in weights_of(section).items():
        if not (local(OPTION, place) / "config.json").is_file():
            own = adapters.read(place, groups, heads=heads)
            groups = lora.merge({**groups, "lora": own}, weight)
            continue
        change, ours = (trees.flatten_dict(a, sep=".") for a in (_change(model(place)), groups))
        differ = [n for n, a in change.items() if n not in ours or ours[n].shape != a.shape]
        if differ or not any(np.any(a) for a in change.values()):
            given = ", ".join(differ[:4]) or "nothing: it is a run without an adapter"
            raise invalid(OPTION, place, "an adapter of this network", f"It differs in {given}.")
        summed = {n: ours[n] + weight * a for n, a in change.items()}
        groups = trees.unflatten_dict({**ours, **summed}, sep=".")
    return {**groups, **kept}


def _change(model: Any) -> PyTree:
    """What a run's wraps add to its parameters before sampling, by group."""
    own = model.weights(None)
    merged = model.setup.method.plain(own)
    shared = [k for k in merged if k in own and k != "frozen"]
    return {k: jax.tree.map(jnp.subtract, merged[k], own[k]) for k in shared}
