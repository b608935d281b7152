"""Links out of docs/ lead to the file in the repository on GitHub.

A file that is not there is a warning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

BLOB = "https://github.com/jaxgen/jaxgen/blob/main/"
LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")
log = logging.getLogger(__name__)


def on_source(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's hook: changes the text of a page in place."""
    if "/" in name:  # from there, `..` is docs/ itself
        return

    def there(found: re.Match[str]) -> str:
        if not (Path(app.srcdir).parent / found[1]).exists():
            log.warning("no file %s in the repository", found[1], location=name, type="links")
        return f"]({BLOB}{found[1]})"

    source[0] = LINK.sub(there, source[0])


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("source-read", on_source)
    return {"parallel_read_safe": True}
