"""Every notebook runs from top to bottom, on one device as its reader has it."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NEEDS = {"tpu_plan": "libtpu"}
"""What notebooks install beside jaxgen."""


@pytest.mark.parametrize("path", sorted(Path("colab").glob("*.ipynb")), ids=str)
def test_notebook_runs(path, monkeypatch):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setenv("JAXGEN_IMAGES", "12800")
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("path", sorted(Path("colab").glob("*.ipynb")), ids=str)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
