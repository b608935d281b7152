"""Fetch a model from a hub of models into a new folder, and compare every file with its digest.

The folder takes the place of a workdir in every command. None of what is fetched is code.
"""

from __future__ import annotations

import argparse
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen pull`."""
    parser.add_argument("--repo", required=True, help="OWNER/NAME, or OWNER/NAME@REVISION")
    parser.add_argument("--out", required=True, help="a new folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Pull; returns what the model says of itself."""
    from jaxgen.api import pull

    return pull(args.repo, args.out)
