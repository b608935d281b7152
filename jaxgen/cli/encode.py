"""Write a frozen encoder's features of a data set beside it, for methods to train with.

A config then says data.source=dict(name="features.features", of=<its source>, path=OUT), and
batches hold a column `feature` [B, D].
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import trust_argument

PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen encode`."""
    parser.add_argument(
        "--config", default=None, help="whose data: a Python file with get_config()"
    )
    parser.add_argument("--workdir", default=None, help="or a run, whose data")
    parser.add_argument(
        "--encoder", required=True, help="a name in jaxgen.frozen.encoders, or dict(name=..., ...)"
    )
    parser.add_argument("--out", required=True, help="x.npz")
    trust_argument(parser)
    parser.add_argument("--flips", action="store_true", help="of the mirrored images too")
    parser.add_argument("--batch_size", type=int, default=256, help="images per call")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Encode both halves; returns where to, how many, and of how many features."""
    from jaxgen import config as configs
    from jaxgen.api import encode
    from jaxgen.errors import invalid
    from jaxgen.run.record import saved_config
    from jaxgen.run.setup import TOP

    if (args.workdir is None) == (args.config is None):
        given = "neither" if args.workdir is None else "both"
        raise invalid("--workdir and --config", given, "one of the two")
    config = configs.load(args.config) if args.workdir is None else saved_config(args.workdir)
    configs.override(config, args.overrides, TOP)
    # A workdir's config may be somebody else's.
    with configs.foreign(None if args.workdir is None else configs.trusted()):
        return encode(
            config,
            configs.literal(args.encoder),
            args.out,
            flips=args.flips,
            batch_size=args.batch_size,
        )
