"""Log-likelihood of real images given their labels, in nats and bits per dimension.

For every family that has a likelihood or a bound on it; which of the two, and the formula, is
printed with the number, beside what independent pixels reach.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import loaded, model_arguments, seed

PREFIXES = ("--config.data.",)
"""Free options: where the data are now."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen likelihood`."""
    model_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default=None, help="default: test")
    parser.add_argument(
        "--images", default=None, help="a folder, a .npy or a .npz in the place of a split"
    )
    parser.add_argument("--draws", type=int, default=None, help="noise draws averaged")
    parser.add_argument("--limit", type=int, default=None, help="images (0: all)")
    parser.add_argument("--seed", type=seed, default=None, help="of the draws; else the config's")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns nats, bits per dimension and the baselines."""
    from jaxgen.api import likelihood
    from jaxgen.errors import invalid

    if args.split is not None and args.images is not None:
        raise invalid("--images and --split", "both", "one of the two")
    return likelihood(
        loaded(args),
        args.workdir,
        split=args.split or "test",
        images=args.images,
        draws=args.draws,
        limit=args.limit,
        ema=args.ema,
        seed=args.seed,
    )
