"""docs/data.md: its examples run."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_examples_of_the_page_run():
    report = []
    runner = doctest.DocTestRunner()
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, "data.md", None, 0)
    failed = runner.run(test, out=report.append).failed
    assert len(test.examples) == 16 and not failed, "".join(report)
