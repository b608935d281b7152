"""`generated/commands.md`: what each command of jaxgen takes, from its parser."""

from __future__ import annotations

import argparse
import os
from typing import Any
from unittest import mock

import generated

from jaxgen.cli import parser


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser by name; {} where it has none."""
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def text() -> str:
    """The page, as Markdown."""
    parts = ["# Commands\n\n`jaxgen COMMAND --help` prints the same.\n"]
    shown = "```text\n{}```\n"
    with mock.patch.dict(os.environ, COLUMNS="96"):
        for name, command in commands(parser()).items():
            parts += [f"## {name}\n", shown.format(command.format_help())]
            for inner, each in commands(command).items():
                parts += [f"### {name} {inner}\n", shown.format(each.format_help())]
    return "\n".join(parts)


def write(app: Any) -> None:
    """Sphinx's hook: before the sources are read."""
    generated.write(app.srcdir, {"commands.md": text()})


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
