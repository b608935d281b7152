"""Classify real images with the generative model itself.

Denoising errors with noise shared across the classes; hopeless classes are dropped round by round.
"""

from __future__ import annotations

import argparse
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen classify`."""
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--draws", type=int, default=None, help="noise draws per class at most")
    parser.add_argument("--limit", type=int, default=None, help="images to classify (0: all)")
    parser.add_argument("--ema", default=None)
    parser.add_argument("--seed", type=int, default=None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Classify; returns accuracy, network calls and seconds."""
    from jaxgen.api import classify, load

    return classify(
        load(args.workdir),
        args.workdir,
        split=args.split,
        draws=args.draws,
        limit=args.limit,
        ema=args.ema,
        seed=args.seed,
    )
