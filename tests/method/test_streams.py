"""Random streams have names."""

import ast
from pathlib import Path

FOLDS = {"fold", "fold_in"}


def bare(path: Path) -> list[int]:
    """The lines of calls of fold(keys, integer) or fold_in(key, integer)."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        in FOLDS
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Constant)
    ]


def test_a_stream_of_the_library_is_a_name(tmp_path):
    """Of the laws in jaxgen.testing, keys are what is tried out; they need no streams."""
    files = [p for p in Path("jaxgen").rglob("*.py") if Path("jaxgen/testing") not in p.parents]
    named = {str(path): lines for path in files if (lines := bare(path))}
    assert not named, "name it: jaxgen/method/streams.py, or a constant beside its use"
    (tmp_path / "it.py").write_text("a = fold(keys, 1)\nb = jax.random.fold_in(key, 2)\n")
    assert bare(tmp_path / "it.py") == [1, 2]


def test_streams_of_a_step_that_wraps_have_are_all_different():
    """Two wraps of one run fold the same step's key."""
    found: dict[int, str] = {}
    for room in ("tune", "distill", "unlearn", "method"):
        for path in Path("jaxgen", room).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.Assign):
                    continue
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for value in values:
                    text = ast.unparse(value)
                    if text.startswith("2 ** 32 -"):
                        number = eval(text)
                        assert number not in found, (path, text, found[number])
                        found[number] = str(path)
    assert len(found) > 12
