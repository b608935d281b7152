"""A run's LoRA alone, as a file or folder that jaxgen, peft or diffusers read."""

from __future__ import annotations

from pathlib import Path

import flax.traverse_util as trees

from jaxgen import config as configs
from jaxgen import files
from jaxgen.data import to_host
from jaxgen.errors import invalid
from jaxgen.run.model import Model
from jaxgen.tune import adapters, lora


def export(
    model: Model, out: str | Path, *, ema: str | None = None, layout: str = "jaxgen"
) -> Path:
    """Write the adapter of a run with `tune.lora` (`tune.adapters.write`); `out` is new.

    layout: "jaxgen" or "diffusers" (a .safetensors file), "peft" (a folder). ema: whose (None: the
    default average). Raises UsageError for a run without one, and for a layout that has no names
    for its layers.
    """
    room = configs.ROOMS["wrap"]
    wraps = [s if isinstance(s, str) else dict(s) for s in model.setup.config.get("wrap", ())]
    sections = [{"name": s} if isinstance(s, str) else s for s in wraps]
    own = [s for s in sections if configs.resolve(s["name"], room, "config.wrap") is lora.lora]
    if not own:
        raise invalid("--adapter", str(model.workdir), "a run with wrap=[dict(name='tune.lora')]")
    place = files.local("--out", out)
    if place.exists():
        raise invalid("--out", str(out), "a place where nothing is yet")
    if layout != "peft":
        files.check_out("--out", place, (".safetensors",))
    changes = to_host(model.weights(ema)["lora"])
    flat = trees.flatten_dict(changes, sep=".")
    rank = next(a.shape[-1] for name, a in flat.items() if name.endswith(".a"))
    alpha = own[0].get("alpha")
    return adapters.write(
        place,
        changes,
        rank=rank,
        alpha=float(rank if alpha is None else alpha),
        layout=layout,
        heads=getattr(model.setup.modules, "heads", None),
    )
