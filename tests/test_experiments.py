"""The experiments' command line, and every experiment's checks."""

from __future__ import annotations

import importlib
import json

import pytest

from experiments.__main__ import found, main

SLUGS = [row["slug"] for row in found()]


def test_the_first_rows_are_there(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    first = {"dit", "edm", "score_sde", "stochastic_interpolants", "diffusion_classifier"}
    assert first <= {row["slug"] for row in rows}
    assert all(set(row) == {"slug", "family", "paper", "module", "entry"} for row in rows)


@pytest.mark.parametrize("row", found(), ids=SLUGS)
def test_entries_exist(row):
    module, name = row["entry"].rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("slug", SLUGS)
def test_experiment_passes(slug, capsys):
    code = main(["run", slug, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"slug", "paper", "checks", "seconds"}
    assert code == 0, [check for check in result["checks"] if not check["ok"]]


def test_an_unknown_experiment_names_the_closest(capsys):
    assert main(["run", "edn"]) == 2
    assert "Did you mean 'edm'?" in capsys.readouterr().err


def test_a_failed_check_is_exit_code_one(monkeypatch, capsys):
    from experiments.check import near
    from experiments.diffusion import edm

    monkeypatch.setattr(edm, "checks", lambda: [near("never", float("nan"), 0.0, 1.0)])
    assert main(["run", "edm"]) == 1
    assert "FAIL never" in capsys.readouterr().out
