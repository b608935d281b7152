"""The site: `pip install -e ".[docs]" && sphinx-build -W docs docs/_build`.

Links to the outside are checked by `sphinx-build -b linkcheck docs docs/_build/links`, which needs
a network; those within are checked by every build, a missing page or heading being a warning.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Cells run for a moment: compiling takes most of their time, and unoptimised code is as right.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

project = "jaxgen"
author = copyright = "The jaxgen authors"
html_title = "jaxgen"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "plain_docstrings",
    "api_pages",
    "config_keys",
    "command_line",
    "repository_links",
]
exclude_patterns = ["_build", "_ext", "jupyter_execute", "**.ipynb_checkpoints"]

# Every warning is an error (-W). References in signatures to types of other libraries have no page.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]
show_warning_types = True

# Code cells are run at every build. Code in `>>>` examples and the commands of the other pages are
# run by the tests (tests/docs), and not a second time here.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True
# Of cells that were not run (`.ci/run`), nobody knows the language.
suppress_warnings = ["myst-nb.lexer"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# What a package gathers from its modules is described once, where it is written.
autodoc_default_options = {"members": True, "ignore-module-all": True}
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": "https://github.com/jaxgen/jaxgen",
    "use_repository_button": True,
    "path_to_docs": "docs",
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
