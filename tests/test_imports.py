"""Imports flow one way, and the library knows nothing of what is built on it."""

import ast
from pathlib import Path

import pytest

ROOT = Path("jaxgen")
# A module may import from its own level or from those before it; the longest name decides.
LEVELS = [
    ["errors", "__init__"],
    ["config", "mesh", "files"],
    ["method", "ops", "data"],
    ["nn"],
    ["pretrained", "families"],
    ["tokenizers", "steer"],
    ["testing", "classify", "metrics"],
    ["frozen"],
    ["training"],
    ["tune", "distill", "unlearn"],
    ["run", "plan", "launch"],
    ["report.pictures", "report.page", "scoring", "selection"],
    ["report"],
    ["export"],
    ["api"],
    ["doctor"],
    ["cli", "__main__"],
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """A file's dotted name below the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def level(name: str) -> int | None:
    """The level of a dotted name below the package: that of its longest prefix."""
    while name and name not in LEVEL:
        name = name.rpartition(".")[0]
    return LEVEL.get(name)


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
        own, other = level(module(path)), level(".".join(parts[1:]))
        if parts[0] == "jaxgen" and other is not None:
            assert own is not None and other <= own, f"{path} imports {name}"


def test_every_room_has_a_level():
    assert all(level(module(p)) is not None for p in FILES)


def test_the_base_install_needs_no_torch_and_no_tensorflow():
    for path in FILES:
        top = {name.split(".")[0] for name in imports(path)}
        assert not top & {"torch", "tensorflow", "diffusers", "transformers"}, path
