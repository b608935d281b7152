"""Make a checkpoint of somebody else's a model that every command takes in the place of a workdir.

jaxgen import DiT-XL-2-256x256.pt --layout dit --vae sd-vae-ft-mse --out dit
jaxgen import DiT-XL-2-256 --out dit                     # a folder as diffusers saves it

Known layouts: docs/checkpoints.md. What weights do not tell: --config.model.heads=16
Nothing in a checkpoint is run: safetensors, or PyTorch files by torch.load(weights_only=True).
"""

from __future__ import annotations

import argparse
from typing import Any

PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE` of the config that is written."""
PLACES = ("out", "vae", "source")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen import`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .safetensors or PyTorch file, or a folder as diffusers saves it",
    )
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument(
        "--layout", default=None, help="whose names the weights have, where they do not tell"
    )
    parser.add_argument(
        "--vae", default=None, help="what decodes its samples, where SOURCE does not have it"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Import; returns what the checkpoint was taken for."""
    from jaxgen.api import import_checkpoint

    return import_checkpoint(
        args.source, args.out, layout=args.layout, vae=args.vae, overrides=args.overrides
    )
