"""docs/testing.md: its examples run, and its table is complete."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from jaxgen import testing

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
# Parts of others, which the page names together.
PARTS = {
    "check_alone", "check_calls", "check_denoiser", "check_ends", "check_forward", "check_gradient",
    "check_jvp", "check_loss_falls", "check_steps", "check_weights",
}  # fmt: skip


def test_the_examples_run():
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, "testing.md", None, 0)
    report = []
    assert test.examples and not runner.run(test, out=report.append).failed, "".join(report)


def test_every_law_is_on_the_page():
    found = set(re.findall(r"`(check_\w+)`", PAGE.read_text()))
    assert found | PARTS == {name for name in testing.__all__ if name.startswith("check_")}
