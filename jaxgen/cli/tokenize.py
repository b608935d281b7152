"""Write the codes of a tokenizer's data, for a second stage to train on.

A second stage's config then says data.source=dict(name="codes.codes", path=OUT).
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import trust_argument

PREFIXES = ("--config.data.",)
"""Free options: where the data are now."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen tokenize`."""
    parser.add_argument("--workdir", required=True, help="of the tokenizer")
    trust_argument(parser)
    parser.add_argument("--out", required=True, help="folder for the codes")
    parser.add_argument("--ema", default=None, help="which average of the parameters")
    parser.add_argument("--flips", action="store_true", help="codes of the mirrored images too")
    parser.add_argument("--batch_size", type=int, default=256, help="images per call")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Encode both halves; returns what `codes.json` says."""
    from jaxgen.api import load, tokenize

    return tokenize(
        load(args.workdir, data=args.overrides),
        args.workdir,
        args.out,
        ema=args.ema,
        flips=args.flips,
        batch_size=args.batch_size,
    )
