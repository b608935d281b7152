"""Docstrings of jaxgen are plain text: paragraphs, lists and indented examples, no markup.

So `*args`, `x_t` and `|w|` in them are what they look like, `name` is code, and what is indented is
shown as it stands. Types in signatures are text, too:
looking up each of them would take longer than all else.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

CODE = re.compile(r"``?([^`\n]+?)``?(?!`)")
SPECIAL = re.compile(r"([\\*_|`])")
ITEM = re.compile(r"(\s*)([-*]|\d+\.)\s+")


def inline(text: str) -> str:
    """A line of plain text as reStructuredText: backticks are code, all else stands for itself."""
    out, place = "", 0
    for found in CODE.finditer(text):
        code = found[1].strip()
        out += SPECIAL.sub(r"\\\1", text[place : found.start()]) + rf"\ ``{code}``\ "
        place = found.end()
    return out + SPECIAL.sub(r"\\\1", text[place:])


def block(lines: list[str]) -> list[str]:
    """A paragraph (lines without a blank one among them) as reStructuredText."""
    if all(line.startswith("    ") for line in lines):
        return ["::", "", *lines]
    if lines[0].lstrip().startswith(">>>"):
        return lines
    out = []
    for line in lines:
        item = ITEM.match(line)
        if item and not out:
            out.append(item[0] + inline(line[item.end() :]))
        elif item and ITEM.match(lines[0]):
            out += ["", item[0] + inline(line[item.end() :])]
        elif ITEM.match(lines[0]):
            out.append(" " * len(ITEM.match(lines[0])[0]) + inline(line.strip()))
        else:
            out.append(inline(line.strip()))
    return out


def as_rst(lines: list[str]) -> list[str]:
    """A docstring, dedented, as reStructuredText that says the same."""
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if paragraph.strip():
            out += [*block(paragraph.splitlines()), ""]
    return out


def on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: changes the lines in place."""
    lines[:] = as_rst(lines)


def without_references(app: Any, doctree: nodes.document) -> None:
    """Sphinx's hook: what autodoc made a reference of in signatures becomes its text."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        if reference.get("refdomain") == "py":
            reference.replace_self(reference.children)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("doctree-read", without_references)
    app.connect("autodoc-process-docstring", on_docstring)
    return {"parallel_read_safe": True}
