"""Imports flow one way, and the library knows nothing of what is built on it."""

import ast
from pathlib import Path

import pytest

ROOT = Path("jaxgen")
# A module may import from its own level or from those before it.
LEVELS = [
    ["errors", "__init__"],
    ["config", "mesh", "chain"],
    ["method", "ops", "data"],
    ["nn"],
    ["pretrained", "families"],
    ["tokenizers", "steer"],
    ["testing", "convergence", "classify", "metrics"],
    ["rewards", "encoders"],
    ["training"],
    ["setup"],
    ["model", "others", "plan", "launch"],
    ["pictures", "page", "scoring", "tokenize", "selection"],
    ["report", "compare"],
    ["api"],
    ["cli", "__main__"],
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_flow_one_way(path):
    # The package's own __init__ gathers the public names and is imported by nobody inside.
    if path == ROOT / "__init__.py":
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("configs", "experiments", "tests", "colab"), (path, name)
        if parts[0] == "jaxgen" and len(parts) > 1 and (parts[1] in LEVEL):
            assert LEVEL[parts[1]] <= LEVEL[room(path)], f"{path} imports {name}"


def test_every_room_has_a_level():
    assert {room(p) for p in FILES} <= set(LEVEL)


def test_the_base_install_needs_no_torch_and_no_tensorflow():
    for path in FILES:
        top = {name.split(".")[0] for name in imports(path)}
        assert not top & {"torch", "tensorflow", "diffusers", "transformers"}, path
