"""Make an average of any length from a run's snapshots, after training.

Writes `ema/std_X.safetensors` in the workdir; use it with --ema std_X.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import number


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen ema`."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--std", type=number, required=True, help="relative length, e.g. 0.05")
    parser.add_argument(
        "--images", type=int, default=None, help="at how many images seen (default: last)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reconstruct; returns the file, the weights' sum and the residual."""
    from jaxgen.api import reconstruct_ema

    return reconstruct_ema(args.workdir, std=args.std, images=args.images)
