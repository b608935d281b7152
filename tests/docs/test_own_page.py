"""docs/own_network.md: its files, commands and examples run, in the order of the page."""

from __future__ import annotations

import doctest
import re
import shlex

import pytest

from tests.own_kit import PAGE, files  # noqa: F401
from tests.running import run_here

FEW = {
    "train": ["--config.train.images=256", "--config.checkpoint={'every': 128}",
              "--config.train.preview_per_label=1", "--config.classify.at_end=False",
              "--config.sample.steps=2"],
    "sample": ["--sample.steps=2"],
    "classify": ["--draws=2", "--limit=10"],
}  # fmt: skip
"""What makes the page's commands short."""


@pytest.fixture
def there(files, monkeypatch):  # noqa: F811
    monkeypatch.chdir(files)
    return files


def test_the_page_runs(there):
    """Commands and examples in turn: a later one needs the files of the earlier."""
    text = PAGE.read_text()
    scope: dict = {}
    runner, parser, report = doctest.DocTestRunner(), doctest.DocTestParser(), []
    commands = 0
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL):
        if language == "bash":
            for line in block.replace("\\\n", "").splitlines():
                _, *words = shlex.split(line)
                code, _, err = run_here(*words, *FEW[words[0]])
                assert code == 0, (line, err)
                commands += 1
        elif block.startswith(">>>"):
            test = parser.get_doctest(block, scope, "own_network.md", None, 0)
            runner.run(test, out=report.append, clear_globs=False)
            scope.update(test.globs)
    assert not runner.failures, "".join(report)
    assert commands == 4 and runner.tries > 9
    assert (there / "mine.png").stat().st_size > 1000
