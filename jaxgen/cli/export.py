"""Hand a trained model on: a folder that every command takes, or a program that needs JAX alone.

--out NAME.jaxexport: the sampler as one program for CPU, GPU and TPU, and a script that runs it.
--out NAME.onnx: one call of a diffusion model's denoiser, for ONNX runtimes.
--adapter LAYOUT --out PLACE: of a run of tune.lora, what it has learnt, without the model.
Any other --out: a new folder with parameters, config, class names, scores, grids and a card.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import loaded, model_arguments, sampler_options

PREFIXES = ("--sample.",)
"""Free options: of the sampler in a program or a graph."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen export`."""
    model_arguments(parser)
    parser.add_argument("--out", required=True, help="NAME.jaxexport, NAME.onnx, or a new folder")
    parser.add_argument(
        "--license", default=None, help="of a folder: for its card, e.g. apache-2.0"
    )
    parser.add_argument(
        "--platforms", default=None, help="of a program (default: cpu,cuda,tpu, all in one file)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=None, help="of an ONNX graph: images a call (default: 1)"
    )
    parser.add_argument(
        "--adapter",
        default=None,
        choices=("jaxgen", "peft", "diffusers"),
        help="the run's LoRA alone: a .safetensors file, or peft's folder",
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="parameters in a file beside the program (default: from 1 GiB)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export; returns the files, or the folder, that were written."""
    from jaxgen.api import export

    options: dict[str, Any] = {"ema": args.ema, "licence": args.license}
    if args.platforms is not None:
        options["platforms"] = args.platforms.split(",")
    if args.adapter is not None:
        options["adapter"] = args.adapter
    if args.beside:
        options["beside"] = True
    if args.batch_size is not None:
        options["batch"] = args.batch_size
    if args.sampling:
        options["changes"] = sampler_options(args)
    return export(loaded(args), args.out, **options)
