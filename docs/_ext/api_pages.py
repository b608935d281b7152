"""A page of `generated/api/` for every package of jaxgen, from its docstrings."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import Any

import generated

import jaxgen

SKIPPED = ("jaxgen.__main__", "jaxgen.plan.__main__")
"""Modules that run when they are imported."""


def packages() -> dict[str, list[str]]:
    """The modules of each package, by its dotted name; the package itself first."""
    found: dict[str, list[str]] = {"jaxgen": ["jaxgen"]}
    for module in pkgutil.walk_packages(jaxgen.__path__, "jaxgen."):
        home, _, name = module.name.rpartition(".")
        if module.name in SKIPPED or name.startswith("_"):
            continue
        if module.ispkg:
            found[module.name] = [module.name]
        else:
            found[home].append(module.name)
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
    generated.write(app.srcdir, {f"api/{name}": text for name, text in pages.items()})
    generated.keep(app.srcdir, "api", set(pages))


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
