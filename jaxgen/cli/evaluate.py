"""Score samples of a trained model, or of anyone's; a receipt with every score.

With --workdir: samples of that model, scored by a small classifier trained on the same data and
cached, so it works offline. Anything that its sampler can be told: --sample.KEY=VALUE.
With --reference: --samples is a folder of images, a .npy or a .npz, made by whatever made it.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import loaded, model_arguments, number, seed

PREFIXES = ("--sample.", "--config.data.")
"""Free options: of the sampler; where the data are now."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen evaluate`."""
    model_arguments(parser, workdir=False)
    parser.add_argument(
        "--samples", default=None, help="how many (with --workdir), or where they are"
    )
    parser.add_argument("--seed", type=seed, default=None, help="of the samples; else the config's")
    parser.add_argument(
        "--features",
        default=None,
        help="inception, dinov2_vitl14, clip_vitl14_336, ..., module:function, classifier (trained "
        "on the reference), identity (arrays are features); with --workdir several, with commas, "
        "and lpips of a tokenizer",
    )
    parser.add_argument("--weights", default=None, help="file of the features' network")
    parser.add_argument(
        "--scores",
        default=None,
        help="names, e.g. fid,precision_k3 or all (default: the core ones)",
    )
    parser.add_argument(
        "--intervals", type=int, default=None, help="random halves for intervals; 0 for none"
    )
    model = parser.add_argument_group("samples of a model (--workdir)")
    model.add_argument(
        "--guidance", type=number, action="append", default=None, help="may be repeated"
    )
    model.add_argument("--solver", default=None, help="e.g. heun; else the config's")
    model.add_argument("--steps", type=int, default=None, help="solver steps; else the config's")
    files = parser.add_argument_group("samples that are there already (--reference)")
    files.add_argument(
        "--reference", default=None, help="a folder of images, a .npy, a .npz; or mu and sigma"
    )
    files.add_argument(
        "--train", default=None, help="what the generator learnt from: floors, and copying"
    )
    files.add_argument("--range", default=None, help="of float images: -1,1 or 0,1 or 0,255")
    files.add_argument(
        "--channels", type=int, default=None, help="1 grey, 2 grey and alpha, 3 RGB, 4 RGBA"
    )
    files.add_argument(
        "--background", default=None, help="behind images that lose their alpha (default: white)"
    )
    files.add_argument(
        "--image_size",
        type=int,
        default=None,
        help="pixels a side to which images of other sizes are resized and cropped",
    )
    parser.add_argument(
        "--out",
        default=None,
        help="x.json: the receipts (of --workdir: in the place of its receipts/)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score; with --workdir the receipts are written there. Returns them."""
    from jaxgen.errors import invalid

    if (args.workdir is None) == (args.reference is None):
        given = "neither" if args.workdir is None else "both"
        raise invalid("--workdir and --reference", given, "one of the two")
    return _of_files(args) if args.workdir is None else _of_model(args)


def _of_model(args: argparse.Namespace) -> dict[str, Any]:
    from jaxgen.api import evaluate
    from jaxgen.cli import sampler_options
    from jaxgen.errors import invalid

    for option in ("train", "range", "channels", "background", "image_size"):
        if getattr(args, option) is not None:
            raise invalid(f"--{option}", getattr(args, option), "only with --reference")
    try:
        samples = None if args.samples is None else int(args.samples)
    except ValueError as error:
        hint = "A place of samples goes with --reference."
        raise invalid("--samples", args.samples, "a number with --workdir", hint) from error
    options = sampler_options(args)
    return evaluate(
        loaded(args),
        args.workdir,
        samples=samples,
        guidance=args.guidance,
        sections=options.pop("guidance", None),
        ema=args.ema,
        seed=args.seed,
        features=args.features,
        weights=args.weights,
        scores=None if args.scores is None else args.scores.split(","),
        intervals=args.intervals,
        out=args.out,
        **options,
    )


def _of_files(args: argparse.Namespace) -> dict[str, Any]:
    from jaxgen.api import evaluate_files
    from jaxgen.errors import invalid

    for option in ("guidance", "solver", "steps", "ema", "tokenizer", "trust"):
        if getattr(args, option) is not None:
            raise invalid(f"--{option}", getattr(args, option), "only with --workdir")
    if args.overrides or args.sampling:
        given = ", ".join([*args.overrides, *args.sampling])
        raise invalid("--sample, --config.data", given, "only with --workdir")
    if args.samples is None:
        raise invalid("--samples", None, "a folder of images, a .npy or a .npz file")
    return evaluate_files(
        args.samples,
        args.reference,
        train=args.train,
        features=args.features,
        weights=args.weights,
        scores=None if args.scores is None else args.scores.split(","),
        range=args.range,
        channels=args.channels,
        image_size=args.image_size,
        **({} if args.background is None else {"background": args.background}),
        intervals=args.intervals,
        seed=args.seed or 0,
        out=args.out,
    )
