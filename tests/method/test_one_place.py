"""Parameters are stepped in one place of the library; what trains without a run uses it too."""

import ast
from pathlib import Path

HOME = Path("jaxgen/method/learning.py")
PEERS = Path("experiments/benchmarks")


def steps(path: Path) -> bool:
    """Whether a file names optax's `apply_updates`, called, imported or handed on."""
    text, names = path.read_text(), set()
    if "apply_updates" not in text:
        return False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return "apply_updates" in names


def test_parameters_are_stepped_in_one_place():
    files = [*Path("jaxgen").rglob("*.py"), *Path("experiments").rglob("*.py")]
    found = [path for path in files if PEERS not in path.parents and steps(path)]
    assert found == [HOME], "elsewhere: method.update of a Method, or method.minimise"
