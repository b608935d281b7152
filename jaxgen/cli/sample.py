"""Sample images from a trained model: a grid, a folder of PNGs, or arrays.

Labels are a list, ranges and counts: 3,8 or 0-9 or 3:20,8:5 (label:count); or names: dog,cat:20.
Anything that this model's sampler can be told: --sample.KEY=VALUE.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jaxgen.cli import image_arguments, loaded, model_arguments, number, seed

PREFIXES = ("--sample.", "--config.data.")
"""Free options: of the sampler; where the data are now."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen sample`."""
    model_arguments(parser)
    parser.add_argument(
        "--labels", default=None, help="e.g. 0,1,2 or 0-9 or 3:20 or dog,cat:20 (default: all)"
    )
    parser.add_argument(
        "--per_label", type=int, default=8, help="images for each label without a count"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="image i depends on (seed, i, label) alone"
    )
    parser.add_argument(
        "--guidance", type=number, default=None, help="scale w; 1 is the plain model"
    )
    parser.add_argument("--solver", default=None, help="e.g. heun; else the config's")
    parser.add_argument("--steps", type=int, default=None, help="solver steps; else the config's")
    parser.add_argument("--weak_ema", default=None, help="worse parameters, for autoguidance")
    parser.add_argument(
        "--batch_size", type=int, default=None, help="images per call; else the config's"
    )
    parser.add_argument(
        "--codes",
        action="store_true",
        help="leave codes undecoded; needs no tokenizer, and --out x.npz",
    )
    parser.add_argument(
        "--out",
        action="append",
        default=None,
        help="x.png: grid; x.npz: arrays; else a new or an empty folder for PNGs",
    )
    image_arguments(parser)
    parser.add_argument(
        "--replace", action="store_true", help="samples in the folder --out make place"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sample and write; returns what was made and how fast."""
    import signal

    from jaxgen.api import Output
    from jaxgen.cli import sampler_options
    from jaxgen.data.folder import RESIZER
    from jaxgen.errors import invalid
    from jaxgen.training.interrupt import Interrupted, Interrupts
    from jaxgen.training.log import say

    outs = args.out or (["samples.npz"] if args.codes else ["samples.png"])
    if args.codes and not all(out.endswith(".npz") for out in outs):
        raise invalid("--codes", ", ".join(outs), "--out x.npz: pictures are what is decoded")
    if args.npz != "jaxgen" and (args.codes or not any(out.endswith(".npz") for out in outs)):
        raise invalid("--npz", args.npz, "with --out x.npz, of images")
    if args.image_size is not None and (args.image_size < 1 or args.codes):
        raise invalid("--image_size", args.image_size, "pixels >= 1, of images")
    how = dict(replace=args.replace, npz=args.npz, image_size=args.image_size)
    outputs = [Output(out, **how) for out in outs]
    model = loaded(args)
    if (args.image_size or args.npz != "jaxgen") and model.setup.spec.target is not None:
        given = args.image_size or args.npz
        raise invalid("--image_size, --npz", given, "only of images; this model makes none")
    if model.setup.coding is not None and not args.codes and model.tokenizer is None:
        fix = "Or --codes --out x.npz for the codes themselves."
        raise invalid("--tokenizer", None, "the folder of what decodes this model's samples", fix)
    labels, columns = parse_labels(args.labels, args.per_label, model.setup.spec.class_names)
    changes = sampler_options(args)
    if args.guidance is not None:
        changes["guidance"] = args.guidance
    if args.weak_ema is not None:
        if args.guidance is None:
            raise invalid("--weak_ema", args.weak_ema, "together with --guidance W")
        section = {"name": "autoguidance.autoguidance", "weight": args.guidance}
        changes["guidance"] = [section]

    def keep(first: int, images: Any) -> None:
        for output in outputs:
            output.add(first, images, labels, model.setup.spec.class_names)

    with Interrupts() as interrupts:
        samples = model.sample(
            labels,
            seed=args.seed,
            ema=args.ema,
            weak=args.weak_ema,
            batch_size=args.batch_size,
            stop=interrupts.reached,
            each=keep,
            show=True,
            decode=not args.codes,
            **changes,
        )
        count = len(samples.labels)
        for output in outputs if count else ():
            output.close(samples, columns, model.setup.spec)
        paths = [str(output.path) for output in outputs]
        if count < len(labels):
            kept = f" -> {', '.join(paths)}" if count else "; nothing was written"
            stopped = f"stopped after {count} of {len(labels)} images{kept}"
            raise Interrupted(interrupts.number or signal.SIGINT, stopped)
    say(
        f"{count} images, {samples.steps} steps, {samples.calls:g} network calls an image, "
        f"{samples.images_per_second:.1f} images/s -> {', '.join(paths)}"
    )
    return {
        "images": count,
        "steps": samples.steps,
        "network_calls": samples.calls,
        "images_per_second": samples.images_per_second,
        "seed": args.seed,
        "ema": samples.ema,
        "out": paths,
        **({} if args.image_size is None else {"image_size": args.image_size, "resize": RESIZER}),
    }


def parse_labels(text: str | None, per_label: int, names: Sequence[str]) -> tuple[list[int], int]:
    """(labels, grid columns) of `0,3-5,dog,8:20`. Raises UsageError naming the part at fault.

    names: the classes'. A word that is a class's name means that class, also where it is a number.
    """
    from jaxgen.errors import invalid

    if per_label < 1:
        raise invalid("--per_label", per_label, "a number >= 1")
    if text is None:
        text = f"0-{len(names) - 1}"
    labels: list[int] = []
    groups = []
    for part in text.split(","):
        span, colon, times = (part, "", "") if part in names else part.rpartition(":")
        if not colon:
            span, times = part, str(per_label)
        if not times.isdigit() or int(times) < 1:
            raise invalid("--labels", part, "counts >= 1")
        first, last = _span(span, names)
        for label in range(first, last + 1):
            labels += [label] * int(times)
            groups.append(int(times))
    return labels, groups[0] if len(set(groups)) == 1 else max(1, round(len(labels) ** 0.5))


def _span(text: str, names: Sequence[str]) -> tuple[int, int]:
    """The first and the last label of a name, a number, or two of them with a dash between."""
    from jaxgen.errors import invalid, unknown

    if text in names:
        return (names.index(text),) * 2
    low, dash, high = text.partition("-")
    found = [_label(word, names) for word in ((low, high) if dash else (low,))]
    allowed = f"labels from 0 to {len(names) - 1}, or names of classes; e.g. 0,3-5,8:20"
    known = [label for label in found if label is not None and 0 <= label < len(names)]
    if len(known) == len(found) and known[0] <= known[-1]:
        return known[0], known[-1]
    if None not in found or all(name.isdigit() for name in names):
        raise invalid("--labels", text, allowed)
    raise unknown("--labels", text, names)


def _label(word: str, names: Sequence[str]) -> int | None:
    if word in names:
        return names.index(word)
    return int(word) if word.isdigit() else None
