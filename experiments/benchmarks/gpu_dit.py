"""DiT on one GPU in bfloat16: jaxgen against PyTorch with torch.compile, on the same card.

    python -m experiments.benchmarks.gpu_dit --out /tmp/gpu_dit  # all of it: JSON, Markdown
    python -m experiments.benchmarks.gpu_dit --tiny --eager      # a check of it, anywhere
    bash experiments/benchmarks/gpu_all.sh                       # in parts, each with a time limit

32x32x4 latents, 1000 classes. Training (B/2, L/2, XL/2): forward, backward and AdamW on float32
parameters with bfloat16 compute (autocast in PyTorch), images per second and model FLOPs
utilisation, that is 3 x 2 x (forward multiply-adds of one image, as the paper counts them) x images
per second over the card's dense bfloat16 peak. Sampling (XL/2): 250 DDPM steps and 50 DPM-Solver++
steps, guidance 1.5, images per second; before that, the two sides' DPM-Solver++ images are compared
in float32 on a small network. A profile of XL/2's training step says what the time goes to.

Targets: MFU of at least 55 % and 1.2 x PyTorch in training XL/2; 1.3 x PyTorch in sampling. The
sides alternate; medians over rounds; compilation is not timed. A part that fails (no memory left)
is a row that says so. The two libraries share the card, so that JAX does not take its memory in
advance. The JSON is written again after every part; with --add, what it held before stays beside
what is measured now, so that several commands make one report.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.benchmarks import dit_peers, dit_samplers, traces  # noqa: E402
from jaxgen import files  # noqa: E402
from jaxgen.nn.dit import SIZES  # noqa: E402
from jaxgen.nn.flops import multiply_adds  # noqa: E402
from jaxgen.training.peak import peak_flops  # noqa: E402

TINY = dit_peers.Size(32, 2, 2, patch=2, image=8, channels=4, batch=4)
TASKS = ("train", "sample", "profile")
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "numpy")
Sides = dict[str, Callable[[], Any]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="train, sample, profile")
    parser.add_argument("--sizes", default="B/2,L/2,XL/2", help="to train")
    parser.add_argument("--sample_size", default="XL/2", help="to sample from and to profile")
    parser.add_argument("--batch", type=int, default=32, help="images a step, and a sampled batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="training steps a round")
    parser.add_argument("--sample_rounds", type=int, default=3)
    parser.add_argument("--solvers", default=",".join(dit_samplers.SOLVERS))
    parser.add_argument("--remat", default="none", help="jaxgen's: none, dots, full")
    parser.add_argument("--attention", default="xla", help="jaxgen's, as in jaxgen.ops")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--jaxgen_only", action="store_true", help="leave PyTorch out")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for gpu_dit.json and gpu_dit.md")
    parser.add_argument("--add", action="store_true", help="to what --out has already")
    parser.add_argument("--trace", type=Path, help="file for the profile as JAX wrote it (.pb)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def size_of(name: str, arguments: argparse.Namespace) -> dit_peers.Size:
    """The benchmark's size for a name of the paper, as "B/2"."""
    if arguments.tiny:
        return TINY
    letters, _, patch = name.partition("/")
    return dit_peers.Size(
        **SIZES[letters],
        patch=int(patch),
        image=32,
        channels=4,
        batch=arguments.batch,
        classes=1000,
    )


def alternate(sides: Sides, rounds: int, repeat: int, warm: int) -> dict[str, float]:
    """Median seconds of a call of each side, after `warm` calls that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(warm):
            side()
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            start = time.perf_counter()
            for _ in range(repeat):
                sides[name]()  # each ends with a value on the host, so that it has been computed
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: statistics.median(values) for name, values in seconds.items()}


def network(size: dit_peers.Size, arguments: argparse.Namespace, **fields: Any) -> Any:
    """Our network in the benchmark's settings."""
    given = {"dtype": "bfloat16", "remat": arguments.remat, "attention": arguments.attention}
    return size.jaxgen(**{**given, **fields})


def begin(
    size: dit_peers.Size, net: Any, data: dict[str, np.ndarray], arguments: argparse.Namespace
) -> tuple[Any, Any]:
    """(PyTorch's network or None, our parameters: the same, or fresh ones without PyTorch)."""
    if arguments.jaxgen_only:
        given = (data["image"], data["time"] / 1000, data["label"])
        return None, net.init(jax.random.key(0), *given)["params"]
    peer = size.torch()
    return peer, dit_peers.weights(size, peer)


def torch_side(arguments: argparse.Namespace) -> tuple[str, str, Callable[[Any], Any]]:
    """(name of the side, device, what makes a model fast)."""
    import torch

    torch.set_float32_matmul_precision("high")
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if (place == "cuda") != (jax.devices()[0].platform == "gpu"):
        raise SystemExit(f"PyTorch would run on {place} and JAX on {jax.devices()[0].platform}.")
    if arguments.eager:
        return "torch eager", place, lambda model: model
    return "torch.compile", place, torch.compile


def rows(task: str, name: str, images: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """A row a side: images per second, and jaxgen's ratio to it."""
    ours = seconds["jaxgen"]
    return [
        dict(task=task, size=name, side=s, batch=images, images_per_s=images / t, ratio=t / ours)
        for s, t in seconds.items()
    ]


def train(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of training at one size."""
    size = size_of(name, arguments)
    net, data = network(size, arguments), dit_peers.batch(size)
    peer, params = begin(size, net, data, arguments)
    sides: Sides = {"jaxgen": dit_peers.jaxgen_training(net, params, data)}
    if peer is not None:
        label, place, fast = torch_side(arguments)
        model = fast(peer.to(place).train())
        sides[label] = dit_peers.torch_training(model, data, device=place, bfloat16=True)
    measured = rows(
        "train", name, size.batch, alternate(sides, arguments.rounds, arguments.repeat, 3)
    )
    peak = peak_flops(jax.devices()[0])
    work = 3 * 2 * multiply_adds(net, (size.image, size.image, size.channels))
    for row in measured:
        row["mfu"] = work * row["images_per_s"] / peak if peak else None
    return measured


def check_same_images(arguments: argparse.Namespace) -> float:
    """The largest difference of the two sides' images, over the largest value; must be < 1e-4."""
    peer = TINY.torch().eval()
    labels = dit_peers.batch(TINY)["label"]
    options = {"solver": "dpmpp_2m", "steps": 20, "scale": 1.5}
    params = dit_peers.weights(TINY, peer)
    with jax.default_matmul_precision("highest"):
        ours = dit_samplers.jaxgen_sampling(TINY.jaxgen(), TINY, params, labels, **options)()
    theirs = dit_samplers.torch_sampling(peer, TINY, labels, **options)()
    gap = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not gap < 1e-4:
        raise SystemExit(f"the two samplers' images differ: {gap:.1e} of the largest value")
    return gap


def steps_of(solver: str, arguments: argparse.Namespace) -> int:
    """Steps of a solver in this run."""
    return 4 if arguments.tiny else dit_samplers.SOLVERS[solver]


def sample(task: str, solver: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of sampling by one solver."""
    name = arguments.sample_size
    size = size_of(name, arguments)
    net, data = network(size, arguments, remat="none"), dit_peers.batch(size)
    peer, params = begin(size, net, data, arguments)
    steps, labels = steps_of(solver, arguments), data["label"]
    options: dict[str, Any] = {"solver": solver, "steps": steps, "scale": 1.5}
    sides: Sides = {"jaxgen": dit_samplers.jaxgen_sampling(net, size, params, labels, **options)}
    if peer is not None:
        label, place, fast = torch_side(arguments)
        common = {**options, "device": place, "bfloat16": True}
        model = fast(peer.eval().to(place))
        sides[label] = dit_samplers.torch_sampling(model, size, labels, **common)
    seconds = alternate(sides, arguments.sample_rounds, 1, 1)
    return rows(task, name, size.batch, seconds)


def profile(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where the time of our training step goes."""
    size = size_of(arguments.sample_size, arguments)
    net, data = network(size, arguments), dit_peers.batch(size)
    params = net.init(jax.random.key(0), data["image"], data["time"] / 1000, data["label"])
    step = dit_peers.jaxgen_training(net, params["params"], data)
    for _ in range(3):
        step()
    return traces.profile(step, arguments.repeat, arguments.trace)


def versions() -> dict[str, str]:
    """Of the packages that matter."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "none"
    return packages


def markdown(report: dict[str, Any]) -> str:
    """The results as tables."""
    about = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    commands = [f"    {command}" for command in report["commands"]]
    lines = [f"{report['device']}; {about}.", "", *commands, ""]
    lines += ["| task | network | side | batch | images/s | MFU | jaxgen is faster by |"]
    lines += ["|-|-|-|-:|-:|-:|-:|"]
    for row in report["rows"]:
        start = f"| {row['task']} | {row['size']} |"
        if "error" in row:
            lines.append(f"{start} not measured: {row['error']} | | | | |")
            continue
        mfu = f"{row['mfu']:.1%}" if row.get("mfu") else "-"
        ratio = "-" if row["side"] == "jaxgen" else f"{row['ratio']:.2f}"
        speed = f"{row['images_per_s']:.4g}"
        lines.append(f"{start} {row['side']} | {row['batch']} | {speed} | {mfu} | {ratio} |")
    if "profile" in report:
        lines += ["", f"Training {report['profile_size']}, jaxgen, by its profile:", ""]
        lines += traces.table(report["profile"])
    return "\n".join(lines) + "\n"


def attempt(task: str, name: str, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A part's rows, or one that says why there are none; its memory is given back."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:  # JAX's and PyTorch's out-of-memory among them
        text = str(error).strip() or type(error).__name__
        return [dict(task=task, size=name, error=text.splitlines()[0][:200])]
    finally:
        gc.collect()
        jax.clear_caches()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()


def merged(known: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old rows and new ones, which replace what was known of the same task and size."""
    anew = {(row["task"], row["size"]) for row in fresh if "error" not in row}
    said = {(row["task"], row["size"]) for row in fresh}

    def stays(row: dict[str, Any]) -> bool:
        here = (row["task"], row["size"])
        return here not in anew and not ("error" in row and here in said)

    return [row for row in known if stays(row)] + fresh


def beginning(arguments: argparse.Namespace) -> dict[str, Any]:
    """A report without rows, or with --add the one that is there. SystemExit: of another device."""
    command = f"python -m experiments.benchmarks.gpu_dit {shlex.join(sys.argv[1:])}".strip()
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "commands": [command],
        "rows": [],
    }
    file = arguments.out and arguments.out / "gpu_dit.json"
    if not arguments.add or not file or not file.exists():
        return report
    known: dict[str, Any] = json.loads(file.read_text())
    for key in ("device", "versions"):
        if known[key] != report[key]:
            raise SystemExit(f"--add: {file} is of {known[key]}; here is {report[key]}")
    if command not in known["commands"]:
        known["commands"].append(command)
    return known


def run(arguments: argparse.Namespace, note: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All the parts; `note` gets what there is after each."""
    report = beginning(arguments)
    tasks, name = arguments.tasks.split(","), arguments.sample_size

    def add(task: str, size: str, work: Callable[[], list[dict[str, Any]]]) -> None:
        report["rows"] = merged(report["rows"], attempt(task, size, work))
        note(report)

    if "train" in tasks:
        for size in arguments.sizes.split(","):
            add("train", size, lambda size=size: train(size, arguments))
    if "profile" in tasks:
        report["profile_size"] = name
        report["profile"] = profile(arguments)
        note(report)
    if "sample" in tasks:
        if not arguments.jaxgen_only:
            report["samplers_differ_by"] = check_same_images(arguments)
        for solver in arguments.solvers.split(","):
            task = f"sample, {solver}, {steps_of(solver, arguments)} steps"
            add(task, name, lambda task=task, solver=solver: sample(task, solver, arguments))
    return report


def main() -> None:
    """Run the benchmark that the command line asks for."""
    arguments = parse()
    if arguments.tiny:
        arguments.sizes = arguments.sample_size = "tiny"
        arguments.rounds, arguments.repeat, arguments.sample_rounds = 2, 1, 1

    def note(report: dict[str, Any]) -> None:
        if arguments.out is not None:
            files.write(arguments.out / "gpu_dit.json", json.dumps(report, indent=2) + "\n")
            files.write(arguments.out / "gpu_dit.md", markdown(report))
        rows = len(report["rows"])
        print(f"{rows} rows, profile: {'profile' in report}", file=sys.stderr, flush=True)

    report = run(arguments, note)
    print(json.dumps(report) if arguments.json else markdown(report), end="")


if __name__ == "__main__":
    main()
