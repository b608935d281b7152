"""A page of `generated/api/` for every room and every family of jaxgen, from its docstrings."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import Any

import generated

import jaxgen

SKIPPED = ("jaxgen.__main__", "jaxgen.plan.__main__")
"""Modules that run when they are imported."""


def packages() -> dict[str, list[str]]:
    """The modules of each page, by its dotted name: of a room, or of a family."""
    found: dict[str, list[str]] = {"jaxgen": ["jaxgen"]}
    for module in pkgutil.walk_packages(jaxgen.__path__, "jaxgen."):
        parts = module.name.split(".")
        if module.name in SKIPPED or parts[-1].startswith("_"):
            continue
        depth = 3 if parts[1] == "families" else 2
        home = ".".join(parts[:depth]) if module.ispkg or len(parts) > depth else "jaxgen"
        found.setdefault(home, []).append(module.name)
    return found


def page(package: str, modules: list[str]) -> Iterator[str]:
    """The lines of a package's page."""
    yield from (package, "=" * len(package), "")
    for module in modules:
        if module != package:
            yield from (module, "-" * len(module), "")
        yield from (f".. automodule:: {module}", "")


def write(app: Any) -> None:
    """Sphinx's hook: before the sources are read."""
    pages = {f"{name}.rst": "\n".join(page(name, m)) for name, m in packages().items()}
    names = "".join(f"   api/{name.removesuffix('.rst')}\n" for name in pages)
    top = f"Modules\n=======\n\n.. toctree::\n   :titlesonly:\n\n{names}"
    written = {f"api/{name}": text for name, text in pages.items()}
    generated.write(app.srcdir, {**written, "modules.rst": top})
    generated.keep(app.srcdir, "api", set(pages))


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
