"""torch-fidelity's modules without the package's own imports, which want torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest


def torch_fidelity(module: str) -> types.ModuleType:
    """torch_fidelity.MODULE; the test is skipped where torch or torch-fidelity is missing."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torch-fidelity is not installed")
    if "torch_fidelity" not in sys.modules:
        sys.modules["torch_fidelity"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"torch_fidelity.{module}")
