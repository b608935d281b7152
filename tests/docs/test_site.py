"""README and the site: what is generated is what configs are checked by; links lead somewhere."""

from __future__ import annotations

import ast
import doctest
import re
import sys
from pathlib import Path

import pytest

from jaxgen import config as configs
from jaxgen.cli import main
from jaxgen.run.setup import SECTIONS, TOP, set_up
from tests import base_run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def keys():
    """docs/_ext/config_keys.py."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        import config_keys
    finally:
        sys.path.pop(0)
    return config_keys


def test_readme_is_short_and_has_its_commands():
    assert len(README.encode()) <= 6000
    assert 'pip install -e ".[test]" && pytest' in README
    first = "pip install -e . && jaxgen train --config configs/digits.py --workdir runs/digits"
    assert first in README and README.count("docs/") > 10


@pytest.mark.parametrize("page", ["README.md", "experiments/benchmarks/RESULTS.md"])
def test_links_outside_of_the_site_lead_to_files(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / link).resolve().exists(), link


def test_every_section_and_each_of_its_keys_is_on_the_page(keys, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = keys.sections()
    for name, section in SECTIONS.items():
        rows = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for key, (_, default) in keys.options(section, set()).items():
            assert f"| `{key}` | {f'`{default}`' if default else '(required)'}" in rows, key


def test_a_piece_of_the_page_is_what_a_config_gets_by_its_name(keys):
    for kind in keys.KINDS:
        found = keys.of_kind(kind)
        assert found, kind
        for name, piece in found.items():
            assert configs.resolve(name, kind.room, kind.keys) is piece


def test_what_the_shipped_configs_say_is_on_the_page(keys):
    """Each `dict(name=..., key=...)` of configs/: a piece of the page, and keys that it lists."""
    listed: dict[str, set[str]] = {"adam": set(), "adamw": set()}
    for name in listed:  # one function, in the table of sections
        listed[name] = set(keys.options(keys.optimizer))
    for kind in keys.KINDS:
        for name, piece in keys.of_kind(kind).items():
            found = keys.options(piece, (*kind.asks, *kind.given))
            listed[name] = listed.get(name, set()) | set(found)
    seen = 0
    for file in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            said = {k.arg: k.value for k in getattr(node, "keywords", ())}
            if isinstance(said.get("name"), ast.Constant):
                assert set(said) - {"name", None} <= listed[said["name"].value], said["name"].value
                seen += 1
    assert seen > 50


def test_the_pieces_of_the_pages_are_found_by_their_names(tmp_path, monkeypatch):
    """Those of own_solver, own_guidance and own_term, by the options that these pages give."""
    for page in (ROOT / "docs").glob("own_*.md"):
        for name, code in re.findall(r"%%writefile (\S+)\n(.*?)```", page.read_text(), re.DOTALL):
            (tmp_path / name).write_text(code)
    model = dict(name="mlp.MLP", width=8, depth=1)
    workdir = base_run.write(
        tmp_path / "run", "data.source=" + repr(dict(name="digits.digits")), f"model={model}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    guided = '[dict(name="cfg.cfg", weight=3.0), dict(name="my_guidance.fading", power=2.0)]'
    asked = ["sample", "--workdir", str(workdir), "--labels", "0-3", "--out", "grid.png"]
    asked += ["--solver", "my_solver.midpoint", "--steps", "2", f"--sample.guidance={guided}"]
    assert main(asked) == 0 and (tmp_path / "grid.png").is_file()
    config = configs.load(str(ROOT / "configs" / "digits.py"))
    configs.override(config, [f"model={model}", 'method.terms=["my_term.brightness"]'], TOP)
    assert "my_term.brightness" in set_up(config).own


def test_the_conversions_run():
    text = (ROOT / "docs" / "coming_from.md").read_text()
    report, runner = [], doctest.DocTestRunner()
    test = doctest.DocTestParser().get_doctest(text, {}, "coming_from.md", None, 0)
    assert test.examples and not runner.run(test, out=report.append).failed, "".join(report)
