"""jaxgen: class-conditional generative modelling in JAX.

    import jaxgen
    trained = jaxgen.train(jaxgen.config.load("configs/digits.py"), "runs/digits")
    jaxgen.load("runs/digits").sample(labels=[3, 3, 8], guidance=2.0, seed=0)

The command line `jaxgen` does the same.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxgen.api import Trained, load, train
    from jaxgen.errors import UsageError
    from jaxgen.run.model import Model, Samples

_HOMES = {
    "train": "jaxgen.api",
    "load": "jaxgen.api",
    "Trained": "jaxgen.api",
    "Model": "jaxgen.run.model",
    "Samples": "jaxgen.run.model",
    "UsageError": "jaxgen.errors",
}

__all__ = ["Model", "Samples", "Trained", "UsageError", "load", "train"]


def __getattr__(name: str) -> Any:
    """Public names, imported when first used, so that `import jaxgen` is fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "pictures":
        return importlib.import_module("jaxgen.report.pictures")
    if name in ("api", "config", "testing"):
        return importlib.import_module(f"jaxgen.{name}")
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")
