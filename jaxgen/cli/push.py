"""Send a trained model to a hub of models, with a card: huggingface.co, or HF_ENDPOINT.

--workdir: a run, which is exported first, or a folder that `jaxgen export` made.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import trust_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen push`."""
    parser.add_argument("--workdir", required=True, help="folder of the run, or an exported model")
    parser.add_argument("--repo", required=True, help="OWNER/NAME, or OWNER/NAME@BRANCH")
    parser.add_argument("--license", default=None, help="of the model, e.g. apache-2.0")
    parser.add_argument("--ema", default=None, help="which average of the parameters")
    parser.add_argument("--private", action="store_true", help="a new model is not public")
    trust_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Push; returns the address of the model."""
    from jaxgen.api import push

    return push(args.workdir, args.repo, licence=args.license, ema=args.ema, private=args.private)
