"""Score samples of a trained model; a receipt with every score.

Features come from a small classifier trained on the same data and cached, so it works offline.
Anything that this model's sampler can be told: --sample.KEY=VALUE.
"""

from __future__ import annotations

import argparse
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen evaluate`."""
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument(
        "--guidance", type=float, action="append", default=None, help="may be repeated"
    )
    parser.add_argument("--solver", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--ema", default=None)
    parser.add_argument("--seed", type=int, default=None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score; writes `receipts/*.json` in the workdir and returns them."""
    from jaxgen.api import evaluate, load
    from jaxgen.cli import sampler_options

    return evaluate(
        load(args.workdir),
        args.workdir,
        samples=args.samples,
        guidance=args.guidance,
        ema=args.ema,
        seed=args.seed,
        **sampler_options(args),
    )
