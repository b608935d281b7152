"""DiT on one GPU in bfloat16: jaxgen against PyTorch with torch.compile, on the same card.

    python -m experiments.benchmarks.gpu_dit [--sizes B/2,L/2,XL/2] [--batch 64] [--json]
    python -m experiments.benchmarks.gpu_dit --tiny      # a check of the script, on any machine

32x32x4 latents, 1000 classes. Training: forward, backward and AdamW on float32 parameters with
bfloat16 compute (autocast in PyTorch), images per second and model FLOPs utilisation, that is
6 x (forward multiply-adds of one image) x images per second over the card's dense bfloat16 peak.
Sampling: Euler steps with classifier-free guidance, images per second. The sides alternate; medians
over rounds; compilation is not timed. The two libraries share the card, so that JAX does not take
its memory in advance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

from experiments.benchmarks import dit_peers  # noqa: E402
from jaxgen.nn.dit import SIZES  # noqa: E402
from jaxgen.nn.flops import multiply_adds  # noqa: E402
from jaxgen.training.peak import peak_flops  # noqa: E402

TINY = dit_peers.Size(32, 2, 2, patch=2, image=8, channels=4, batch=4)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", default="B/2,L/2,XL/2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="training steps a round")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--remat", default="none", help="jaxgen's: none, dots, full")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--jaxgen_only", action="store_true", help="leave PyTorch out")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def size_of(name: str, batch: int) -> dit_peers.Size:
    """The benchmark's size for a name of the paper, as "B/2"."""
    letters, _, patch = name.partition("/")
    return dit_peers.Size(
        **SIZES[letters], patch=int(patch), image=32, channels=4, batch=batch, classes=1000
    )


def alternate(sides: dict[str, Callable[[], Any]], rounds: int, repeat: int) -> dict[str, float]:
    """Median seconds of a call of each side, after three calls that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(3):
            side()
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            start = time.perf_counter()
            for _ in range(repeat):
                sides[name]()  # each ends with a value on the host, so that it has been computed
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(name: str, size: dit_peers.Size, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of training and sampling at one size."""
    net = size.jaxgen(dtype="bfloat16", remat=arguments.remat)
    shape = (size.image, size.image, size.channels)
    device = jax.devices()[0]
    peak = peak_flops(device)
    work = 6 * multiply_adds(net, shape)
    data, peer = dit_peers.batch(size), size.torch()
    params = dit_peers.weights(size, peer)
    options: dict[str, Any] = {"steps": arguments.steps, "guidance": 2.0, "null": size.classes}
    trainers: dict[str, Callable[[], Any]] = {
        "jaxgen": dit_peers.jaxgen_training(net, params, data)
    }
    samplers: dict[str, Callable[[], Any]] = {
        "jaxgen": dit_peers.jaxgen_sampling(net, params, data, **options)
    }
    if not arguments.jaxgen_only:
        import torch

        torch.set_float32_matmul_precision("high")
        place = "cuda" if torch.cuda.is_available() else "cpu"
        if (place == "cuda") != (device.platform == "gpu"):
            raise SystemExit(f"PyTorch would run on {place} and JAX on {device.platform}.")
        wrap = (lambda model: model) if arguments.eager else torch.compile
        label = "torch eager" if arguments.eager else "torch.compile"
        common = {"device": place, "bfloat16": True}
        train = wrap(peer.to(place).train())
        trainers[label] = dit_peers.torch_training(train, data, **common)
        sample = wrap(size.torch().to(place).eval())
        samplers[label] = dit_peers.torch_sampling(sample, data, **options, **common)

    table = []
    for side, seconds in alternate(trainers, arguments.rounds, arguments.repeat).items():
        speed = size.batch / seconds
        mfu = work * speed / peak if peak else None
        table.append(dict(task="train", size=name, side=side, images_per_s=speed, mfu=mfu))
    for side, seconds in alternate(samplers, arguments.rounds, 1).items():
        table.append(
            dict(task="sample", size=name, side=side, images_per_s=size.batch / seconds, mfu=None)
        )
    return table


def main() -> None:
    """Run the benchmark that the command line asks for."""
    arguments = parse()
    if arguments.tiny:
        sizes = {"tiny": TINY}
        arguments.rounds, arguments.repeat, arguments.steps = 2, 1, 2
    else:
        sizes = {name: size_of(name, arguments.batch) for name in arguments.sizes.split(",")}
    device = jax.devices()[0].device_kind
    table = []
    for name, size in sizes.items():
        rows = measure(name, size, arguments)
        table += rows
        for row in rows:
            mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
            line = f"{row['task']:>6} {name:>5} {row['side']:>14} {row['images_per_s']:10.1f} img/s"
            print(f"{line}  MFU {mfu}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        sizes_json = {name: dataclasses.asdict(size) for name, size in sizes.items()}
        print(json.dumps({"device": device, "sizes": sizes_json, "rows": table}))


if __name__ == "__main__":
    main()
