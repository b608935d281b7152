"""What a config's data are, and the real images as training sees them: a folder, .npz or records.

jaxgen data --config configs/digits.py                     # how many, of which classes
jaxgen data --config configs/digits.py --out real/train    # a sub-folder of PNGs a class

Before they are mirrored. Any key of the config can be set: --config.data.source.path=elsewhere
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from jaxgen.cli import image_arguments

PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE`."""
_MOST = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen data`."""
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config(), or file:ARG"
    )
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="which half is written"
    )
    parser.add_argument(
        "--out",
        default=None,
        help="x.npz, x.array_record, else a new or an empty folder (default: nothing is written)",
    )
    parser.add_argument(
        "--format",
        choices=("folder", "npz", "array_record"),
        default=None,
        help="where --out does not say: OUT/SPLIT.npz, OUT/SPLIT.array_record",
    )
    image_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Open the data, write them if asked, and print what they are, or return JSON."""
    from jaxgen import config as configs
    from jaxgen.api import write_data
    from jaxgen.run.setup import TOP

    config = configs.load(args.config)
    configs.override(config, args.overrides, TOP)
    found = write_data(
        config,
        args.out,
        split=args.split,
        format=args.format,
        npz=args.npz,
        image_size=args.image_size,
    )
    if not args.json:
        print(text(found))
    return found


def text(found: Mapping[str, Any]) -> str:
    """What a half is, in a few lines: its size, its classes, and the most and fewest of many."""
    classes: Mapping[str, int] = found["classes"]
    size = "x".join(map(str, found["shape"]))
    lines = [f"{found['split']}: {found['images']:,} images {size}, {len(classes)} classes"]
    width = max(map(len, classes))
    shown = list(classes.items())
    if len(shown) > _MOST:
        ranked = sorted(shown, key=lambda pair: -pair[1])
        lines.append(f"  most in {ranked[0][0]}: {ranked[0][1]:,}; fewest in {ranked[-1][0]}:"
                     f" {ranked[-1][1]:,}; the first {_MOST}:")  # fmt: skip
    lines += [f"  {name:<{width}}  {count:>9,}" for name, count in shown[:_MOST]]
    if found["holdout"]:
        held = found["holdout"]
        lines.append(f"  held out by content: {held['test']:,} of {held['train'] + held['test']:,}")
    lines.append(f"  {'mirrored at random' if found['flip'] else 'not mirrored'} in training")
    if found["out"]:
        lines.append(f"-> {found['out']} ({found['format']})")
    return "\n".join(lines)
