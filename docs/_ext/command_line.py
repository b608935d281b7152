"""`generated/commands.md`: what each command of jaxgen takes, from its parser."""

from __future__ import annotations

import argparse
import os
from typing import Any
from unittest import mock

import generated

from jaxgen.cli import parser


def text() -> str:
    """The page, as Markdown."""
    parts = ["# Commands\n\n`jaxgen COMMAND --help` prints the same.\n"]
    with mock.patch.dict(os.environ, COLUMNS="96"):
        (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
        for name, command in commands.choices.items():
            parts.append(f"## {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)


def write(app: Any) -> None:
    """Sphinx's hook: before the sources are read."""
    generated.write(app.srcdir, {"commands.md": text()})


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
