"""Every mutant of `experiments.mutants` still applies, and names tests that exist."""

from collections import Counter

import pytest

from experiments import mutants
from experiments.mutants import MUTANTS, ROOT, main
from jaxgen.errors import UsageError


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_applies(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.applied(text) != text
    compile(mutant.applied(text), mutant.file, "exec")
    files = [word.partition("::")[0] for word in mutant.tests if word.startswith("tests/")]
    assert files and all((ROOT / file).exists() for file in files)


def test_names_are_there_once():
    assert max(Counter(m.name for m in MUTANTS).values()) == 1


def test_a_stale_mutant_and_a_word_of_none_are_refused():
    with pytest.raises(UsageError, match="once"):
        MUTANTS[0].applied("nothing of the sort")
    with pytest.raises(UsageError, match="--list"):
        main(["no such mutant"])
    with pytest.raises(UsageError, match="jobs >= 1"):
        main(["--jobs", "0"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_noticed_and_what_is_not(monkeypatch, capsys, jobs):
    two = MUTANTS[:2]
    monkeypatch.setattr(mutants, "MUTANTS", two)
    monkeypatch.setattr(mutants, "passes", lambda tests, folder: tests == two[0].tests)
    assert main(["--jobs", str(jobs)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SURVIVED") and lines[1].startswith("noticed")
    assert lines[2] == "1 of 2 mutants were noticed." and two[0].name in lines[3]


def test_no_mutant_survives():
    assert main([]) == 0
