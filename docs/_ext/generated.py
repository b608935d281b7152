"""Writes pages that are made from the code into `docs/generated/`, which git ignores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = "generated"


def write(srcdir: str | Path, pages: Mapping[str, str]) -> None:
    """Write pages by their names below `generated/`; unchanged ones keep their times."""
    for name, text in pages.items():
        file = Path(srcdir) / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)


def keep(srcdir: str | Path, folder: str, names: set[str]) -> None:
    """Remove what an earlier build wrote into a folder below `generated/` and is no page now."""
    for file in (Path(srcdir) / FOLDER / folder).glob("*"):
        if file.name not in names:
            file.unlink()
