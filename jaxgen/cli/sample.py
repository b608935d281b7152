"""Sample images from a trained model: a grid, a folder of PNGs, or arrays.

Labels are a list, ranges and counts: 3,8 or 0-9 or 3:20,8:5 (label:count).
Anything that this model's sampler can be told: --sample.KEY=VALUE.
"""

from __future__ import annotations

import argparse
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen sample`."""
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--labels", default=None, help="e.g. 0,1,2 or 0-9 or 3:20 (default: all)")
    parser.add_argument(
        "--per_label", type=int, default=8, help="images for each label without a count"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image i depends on (seed, i, label) alone"
    )
    parser.add_argument(
        "--guidance", type=float, default=None, help="scale w; 1 is the plain model"
    )
    parser.add_argument("--solver", default=None)
    parser.add_argument("--steps", type=int, default=None, help="solver steps")
    parser.add_argument("--ema", default=None, help="which average of the parameters")
    parser.add_argument("--weak_ema", default=None, help="worse parameters, for autoguidance")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument(
        "--out",
        action="append",
        default=None,
        help="x.png: grid; x.npz: arrays; else a folder of PNGs",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sample and write; returns what was made and how fast."""
    from jaxgen.api import load, write_samples
    from jaxgen.cli import sampler_options
    from jaxgen.errors import invalid
    from jaxgen.training.log import say

    model = load(args.workdir)
    labels, columns = parse_labels(args.labels, args.per_label, model.parts.spec.num_classes)
    changes = sampler_options(args)
    if args.guidance is not None:
        changes["guidance"] = args.guidance
    if args.weak_ema is not None:
        if args.guidance is None:
            raise invalid("--weak_ema", args.weak_ema, "together with --guidance W")
        section = {"name": "autoguidance.autoguidance", "weight": args.guidance}
        changes["guidance"] = [section]
    samples = model.sample(
        labels,
        seed=args.seed,
        ema=args.ema,
        weak=args.weak_ema,
        batch_size=args.batch_size,
        show=True,
        **changes,
    )
    paths = [
        str(write_samples(p, samples, columns, model.parts.source))
        for p in args.out or ["samples.png"]
    ]
    say(
        f"{len(labels)} images, {samples.steps} steps, {samples.calls:g} network calls an image, "
        f"{samples.images_per_second:.1f} images/s -> {', '.join(paths)}"
    )
    return {
        "images": len(labels),
        "steps": samples.steps,
        "network_calls": samples.calls,
        "images_per_second": samples.images_per_second,
        "seed": args.seed,
        "ema": samples.ema,
        "out": paths,
    }


def parse_labels(text: str | None, per_label: int, classes: int) -> tuple[list[int], int]:
    """(labels, grid columns) of `0,3-5,8:20`. Raises UsageError naming the part at fault."""
    from jaxgen.errors import invalid

    if per_label < 1:
        raise invalid("--per_label", per_label, "a number >= 1")
    if text is None:
        text = f"0-{classes - 1}"
    labels: list[int] = []
    groups = []
    for part in text.split(","):
        span, colon, times = part.partition(":")
        low, dash, high = span.partition("-")
        try:
            first = int(low)
            last = int(high) if dash else first
            count = int(times) if colon else per_label
        except ValueError:
            allowed = f"labels from 0 to {classes - 1}, ranges and counts, e.g. 0,3-5,8:20"
            raise invalid("--labels", part, allowed) from None
        if not 0 <= first <= last < classes:
            raise invalid("--labels", part, f"labels from 0 to {classes - 1}")
        if count < 1:
            raise invalid("--labels", part, "counts >= 1")
        for label in range(first, last + 1):
            labels += [label] * count
            groups.append(count)
    return labels, groups[0] if len(set(groups)) == 1 else max(1, round(len(labels) ** 0.5))
