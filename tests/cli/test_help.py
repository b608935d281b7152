"""What the command line says of itself: help, versions, the closest word, configs, doctor."""

import argparse
import json

import pytest

import jaxgen
from jaxgen import config as configs
from jaxgen import doctor
from jaxgen.cli import COMMANDS, main, parser
from jaxgen.errors import UsageError
from tests.running import run_here


def every_option():
    def walk(name, found):
        for action in found._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner, sub in action.choices.items():
                    yield from walk(f"{name} {inner}".strip(), sub)
            elif action.option_strings and action.dest not in ("help", "version"):
                yield pytest.param(found, action, id=f"{name} {action.option_strings[0]}")

    return list(walk("", parser()))


@pytest.mark.parametrize("found, action", every_option())
def test_every_option_says_what_it_is_and_its_default(found, action):
    assert action.help and action.help.strip(), action.option_strings
    if action.default not in (None, False, argparse.SUPPRESS) and not action.required:
        text = " ".join(found.format_help().split())
        assert "default" in text.partition(action.option_strings[0] + " ")[2]


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_version_is_the_packages(capsys):
    assert shown(capsys, "--version") == (0, f"jaxgen {jaxgen.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (("smaple",), "sample"),
        (("sample", "--workdir", "x", "--guidence", "2"), "--guidance"),
        (("train", "--confg", "x"), "--config"),
        (("sample", "--workdir", "x", "--per-label=3"), "--per_label"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_closest(arguments, meant, capsys):
    try:
        code = main(list(arguments))
        err = capsys.readouterr().err
    except SystemExit as stop:
        code, err = stop.code, capsys.readouterr().err
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert f"Did you mean {meant!r}?" in err or f"required: {meant}" in err, err


def test_what_is_near_nothing_gets_no_guess(capsys):
    code, _, err = shown(capsys, "xyzzy")
    assert code == 2 and "Did you mean" not in err and all(name in err for name in COMMANDS)


def test_configs_are_found_by_name_here_and_in_the_package(tmp_path, monkeypatch):
    assert configs.load("digits").to_dict() == configs.load("configs/digits.py").to_dict()
    assert configs.load("hypergrid:2x16") == configs.load("configs/hypergrid.py:2x16")
    with pytest.raises(UsageError, match="digits_glow.*Did you mean 'digits_gan'"):
        configs.load("digits_gna")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shipped.py").write_text("def get_config(): return {'seed': 7}")
    monkeypatch.setattr(configs, "SHIPPED", tmp_path)
    assert configs.load("shipped").seed == 7


def test_doctor_tells_what_is_there_and_that_it_computes():
    code, out, err = run_here("doctor", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["ok"] and {c["name"] for c in found["checks"]} == set(doctor.CHECKS)
    assert found["versions"]["jax"] and found["devices"] and "bit for bit" in err


def test_doctor_says_what_fails(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"broken": lambda: 1 / 0, "fine": lambda: "yes"})
    code, out, err = run_here("doctor", "--json")
    assert (
        code == 1 and not out and "FAILED broken: ZeroDivisionError" in err and "fine: yes" in err
    )
    found = doctor.examine()
    assert not found["ok"] and [c["ok"] for c in found["checks"]] == [False, True]


def test_doctor_notices_a_wrong_product(monkeypatch):
    monkeypatch.setattr(doctor.jnp, "matmul", lambda a, b, precision: (a + 0.01) @ b)
    assert not doctor._checked("products", doctor._products)["ok"]
