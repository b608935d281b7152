"""Train a model from a config; the same command again resumes.

Any key of the config can be set: --config.train.images=200_000 --config.sample.steps=10
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import trust_argument

PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen train`."""
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config(), or file:ARG"
    )
    parser.add_argument("--workdir", required=True, help="folder for all that the run writes")
    trust_argument(parser)
    parser.add_argument("--init_from", help="workdir of another run whose parameters to start from")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, then score, classify and write the report, as the config says."""
    from jaxgen import config as configs
    from jaxgen.api import train
    from jaxgen.run.setup import TOP

    config = configs.load(args.config)
    configs.override(config, args.overrides, TOP)
    return train(config, args.workdir, init_from=args.init_from).report
