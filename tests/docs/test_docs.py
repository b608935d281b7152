"""The pages under docs/ say what is so: their examples run, and their tables are complete."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.orders import make, variants
from jaxgen.families.diffusion import guidance
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import linear
from jaxgen.metrics.extractors import NETWORKS
from jaxgen.metrics.scores.table import SCORES

PAGE = Path(__file__).parents[2] / "docs" / "guidance.md"


@pytest.fixture(scope="module")
def names():
    """The names that the page's examples define, after running them all."""
    runner, scope = doctest.DocTestRunner(), {}
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), scope, "guidance.md", None, 0)
    report = []
    failed = runner.run(test, out=report.append, clear_globs=False).failed
    assert test.examples and not failed, "".join(report)
    return test.globs


def rows():
    table = re.findall(r"^\| .* \| ([^|]*) \| `(.*)` \|$", PAGE.read_text(), re.MULTILINE)
    return [(int(re.match(r"\d", calls)[0]), line) for calls, line in table]


@pytest.mark.parametrize(("calls", "line"), rows(), ids=lambda v: str(v)[:30])
def test_a_line_of_the_table_samples_with_the_calls_it_says(names, calls, line):
    guided = eval(line, names)
    assert isinstance(guided, Denoiser)
    assert names["sample"](guided) == (4, 3)
    if "adaptive_guidance" not in line:
        assert guided.calls(0.5) == calls
    else:
        assert np.isnan(guided.calls(0.5))


def test_every_guidance_is_on_the_page():
    page = PAGE.read_text()
    for file in Path(guidance.__file__).parent.glob("*.py"):
        if file.stem not in ("__init__", "pair"):
            assert f"guidance.{file.stem} import" in page or f"`{file.stem}`" in page, file.stem


def test_every_solver_is_on_the_page_with_its_order():
    """The measured column is what `orders` printed; the tests of solvers measure it again."""
    page = PAGE.with_name("solvers.md").read_text()
    found = dict(re.findall(r"^\| `(.*)` \| (\w+)", page, re.MULTILINE))
    expected = {}
    for name, options in variants():
        text = ", ".join(f"{k}={v!r}" for k, v in options.items())
        expected[f"{name}({text})"] = str(make(name, options, linear()).order or "none")
    assert found == expected


def test_every_score_is_on_the_page_and_the_first_ones_are_the_core():
    page = PAGE.with_name("scores.md").read_text()
    table = page.split("## In whose features")[0]
    found = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(found) == sorted(SCORES)
    core = [name for name in found if SCORES[name].core]
    assert found[: len(core)] == core
    for name in NETWORKS:
        assert name.removesuffix("_unit") in page
