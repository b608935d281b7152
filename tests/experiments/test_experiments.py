"""The experiments' command line, and every experiment's checks."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from experiments.__main__ import catalogue, main

SLUGS = [row["slug"] for row in catalogue()]


def test_the_first_rows_are_there(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    first = {"dit", "edm", "score_sde", "stochastic_interpolants", "diffusion_classifier"}
    assert first <= {row["slug"] for row in rows}
    assert all(set(row) == {"slug", "family", "paper", "module", "entry"} for row in rows)


@pytest.mark.parametrize("row", catalogue(), ids=SLUGS)
def test_entries_exist(row):
    module, name = row["entry"].rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("slug", SLUGS)
def test_experiment_passes(slug, capsys):
    code = main(["run", slug, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"slug", "paper", "checks", "seconds"}
    assert code == 0, [check for check in result["checks"] if not check["ok"]]
    assert any(check.get("control") for check in result["checks"]), "no negative control"


@pytest.mark.parametrize("row", catalogue(), ids=SLUGS)
def test_an_experiment_has_a_negative_control(row):
    """Without a run: its module, or one of experiments/shared that it imports, makes one."""
    module = Path(*row["module"].split(".")).with_suffix(".py")
    shared = re.findall(r"from experiments\.shared\.(\w+) import", module.read_text())
    files = [module, *(Path("experiments/shared", f"{name}.py") for name in shared)]
    texts = [file.read_text() for file in files if file.stem != "check"]
    assert any(re.search(r"shared\.check import .*\bcontrol\b", text) for text in texts)


def test_an_unknown_experiment_names_the_closest(capsys):
    assert main(["run", "edn"]) == 2
    assert "Did you mean 'edm'?" in capsys.readouterr().err


def test_a_failed_check_is_exit_code_one(monkeypatch, capsys):
    from experiments.diffusion import edm
    from experiments.shared.check import near

    monkeypatch.setattr(edm, "checks", lambda: [near("never", float("nan"), 0.0, 1.0)])
    assert main(["run", "edm"]) == 1
    assert "FAIL never" in capsys.readouterr().out


def test_a_control_is_ok_where_its_check_fails():
    from experiments.shared.check import below, control

    assert control(below("far", 2.0, 1.0)).ok and not control(below("near", 0.5, 1.0)).ok
    assert not control(below("nothing", float("nan"), 1.0)).ok
    check = control(below("far", 2.0, 1.0))
    assert check.control and check.bound == "not <= 1"


def test_seeds_that_spread_too_far_decide_nothing():
    from experiments.shared.check import control, mean_above, mean_near

    assert mean_near("tight", [1.0, 1.01, 0.99, 1.0, 1.0], 1.0, 0.05).ok
    wide = [0.0, 2.0, 0.5, 1.5, 1.0]
    for check in (mean_near("wide", wide, 1.0, 0.05), mean_above("wide", wide, 0.9)):
        assert not check.ok and not control(check).ok
    with pytest.raises(ValueError, match="seeds >= 5"):
        mean_near("few", [1.0, 1.0], 1.0, 0.1)


def test_run_all_goes_through_a_family(monkeypatch, capsys):
    from experiments.flows import glow, tarflow
    from experiments.shared.check import below, control

    few = [row for row in catalogue() if row["slug"] in ("edm", "glow", "tarflow")]
    monkeypatch.setattr("experiments.__main__.catalogue", lambda: few)

    monkeypatch.setattr(glow, "checks", lambda: [control(below("far", 2.0, 1.0))])
    monkeypatch.setattr(tarflow, "checks", lambda: [below("low", 0.5, 1.0)])
    assert main(["run", "all", "--family", "flows", "--json"]) == 0
    rows = {row["slug"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["glow"]["checks"][0]["control"] is True
    assert "control" not in rows["tarflow"]["checks"][0]

    def crash():
        raise RuntimeError("on purpose")

    monkeypatch.setattr(glow, "checks", crash)
    assert main(["run", "all", "--family", "flows"]) == 1
    out = capsys.readouterr().out
    assert "FAIL glow" in out and "RuntimeError: on purpose" in out and "ok   tarflow" in out


def test_a_family_belongs_to_run_all(capsys):
    assert main(["run", "edm", "--family", "diffusion"]) == 2
    assert main(["run", "all", "--family", "flwos"]) == 2
    assert "Did you mean 'flows'?" in capsys.readouterr().err
