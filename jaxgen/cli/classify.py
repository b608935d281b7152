"""Classify real images with the generative model itself: a half of its data, or --images.

Denoising errors with noise shared across the classes; hopeless classes are dropped round by round.
Beside the accuracy: how far the posteriors can be believed, and what noise in the images does.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import loaded, model_arguments, seed

PREFIXES = ("--config.data.",)
"""Free options: where the data are now."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen classify`."""
    model_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default=None, help="default: test")
    parser.add_argument(
        "--images", default=None, help="a folder, a .npy or a .npz in the place of a split"
    )
    parser.add_argument("--draws", type=int, default=None, help="noise draws per class at most")
    parser.add_argument(
        "--rounds",
        default="halving",
        help="halving drops hopeless classes; one gives every class every draw, for posteriors",
    )
    parser.add_argument(
        "--noise", default=None, help="noise in the images, e.g. 0,.1,.2: standard deviations"
    )
    parser.add_argument("--limit", type=int, default=None, help="images to classify (0: all)")
    parser.add_argument("--seed", type=seed, default=None, help="of the draws; else the config's")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Classify; returns accuracy, calibration, network calls and seconds."""
    from jaxgen.api import classify
    from jaxgen.errors import invalid

    if args.split is not None and args.images is not None:
        raise invalid("--images and --split", "both", "one of the two")
    return classify(
        loaded(args),
        args.workdir,
        split=args.split or "test",
        images=args.images,
        draws=args.draws,
        rounds=args.rounds,
        noise=_numbers(args.noise),
        limit=args.limit,
        ema=args.ema,
        seed=args.seed,
    )


def _numbers(text: str | None) -> list[float]:
    from jaxgen.errors import invalid

    try:
        return [] if text is None else [float(word) for word in text.split(",")]
    except ValueError as error:
        raise invalid("--noise", text, "numbers with commas between, such as 0,.1,.2") from error
