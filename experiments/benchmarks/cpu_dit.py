"""Training and sampling of the same DiT on the CPU: jaxgen against PyTorch, in one run.

    python -m experiments.benchmarks.cpu_dit [--rounds 7] [--threads 1] [--compile] [--json]
    python -m experiments.benchmarks.cpu_dit --depths 4,8,16,28     # compile time against depth
    python -m experiments.benchmarks.cpu_dit --tiny                 # a check of the script

Each round times every side once, in an order that alternates; a ratio is the median over rounds of
PyTorch's time over jaxgen's in the same round, so above one jaxgen is faster. "wall" is what a user
waits; "cpu" is the processor time of the process, which another load on the machine disturbs less.
The process is bound to `--threads` processors, which both sides then use. With more than one, run
it on an idle machine only: where another load takes a processor, PyTorch's threads wait for each
other, and its times grow a hundredfold. Before anything is timed the two networks' samples and
losses are compared.

Measured on one processor of a busy 2-core machine (jax 0.10.2, torch 2.13, 5 rounds, 10 sampling
steps), ratios of processor time to PyTorch eager: training 2.07 (digits), 1.42 (digits2), 1.41
(small); sampling 2.86, 2.56, 1.98. To torch.compile, digits: training 1.76, sampling 2.36. Compile
time of a training step at depth 4, 8, 16, 28: by scan 4.0, 4.5, 2.6, 2.9 s, unrolled 8, 13, 19, 52.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="digits,digits2,small", help="digits, digits2, small")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--variants", action="store_true", help="also other settings of jaxgen")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, where it works")
    parser.add_argument("--depths", default="", help="measure compile time at these depths instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="one small size, once")
    found = parser.parse_args()
    if found.tiny:
        found.sizes, found.rounds, found.steps = "tiny", 1, 2
    return found


ARGUMENTS = parse() if __name__ == "__main__" else argparse.Namespace(threads=0)
if ARGUMENTS.threads and PROCESSORS:
    # Before JAX and PyTorch start their thread pools, which take their size from this.
    os.sched_setaffinity(0, PROCESSORS[: ARGUMENTS.threads])

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.benchmarks import dit_peers, machine  # noqa: E402

SIZES = {
    # Digits at patch 4 and at patch 2 (wider than configs/digits.py), half of DiT-S/2 on latents.
    "digits": dit_peers.Size(128, 6, 4, patch=4, image=8, channels=1, batch=128),
    "digits2": dit_peers.Size(128, 6, 4, patch=2, image=8, channels=1, batch=64),
    "tiny": dit_peers.Size(16, 2, 2, patch=4, image=8, channels=1, batch=4),
    "small": dit_peers.Size(384, 6, 6, patch=2, image=16, channels=4, batch=16, classes=1000),
}
GUIDANCE = 2.0
# Plain "jaxgen" is DiT's default: scan, remat "dots".
VARIANTS: dict[str, dict[str, Any]] = {
    "remat none": {"remat": "none"},
    "remat full": {"remat": "full"},
    "unrolled, remat none": {"scan": False, "remat": "none"},
}


@dataclasses.dataclass
class Times:
    """Seconds of one side, by round."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def alternate(sides: dict[str, Callable[[], Any]], rounds: int, repeat: int) -> dict[str, Times]:
    """Time each side `rounds` times, `repeat` calls a time, in alternating order."""
    times = {name: Times() for name in sides}
    for side in sides.values():
        side()
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                sides[name]()
            times[name].wall.append((time.perf_counter() - wall) / repeat)
            times[name].cpu.append((time.process_time() - cpu) / repeat)
    return times


def rows(task: str, size: str, images: int, times: dict[str, Times]) -> list[dict[str, Any]]:
    """Summarise: median seconds, images a second, median of the rounds' ratios to jaxgen."""
    table = []
    for name, side in times.items():
        row: dict[str, Any] = {"task": task, "size": size, "side": name}
        for kind in ("wall", "cpu"):
            mine, base = getattr(side, kind), getattr(times["jaxgen"], kind)
            row[f"{kind}_s"] = statistics.median(mine)
            row[f"{kind}_ratio"] = statistics.median(m / b for m, b in zip(mine, base, strict=True))
        row["images_per_s"] = images / row["wall_s"]
        table.append(row)
    return table


def compare(name: str, rounds: int, steps: int, *, variants: bool, compiled: bool) -> list[Any]:
    """Rows of training and sampling at one size."""
    import torch

    torch.set_num_threads(max(1, ARGUMENTS.threads))
    size = SIZES[name]
    data, peer = dit_peers.batch(size), size.torch().eval()
    params = dit_peers.weights(size, peer)
    options = {"steps": steps, "guidance": GUIDANCE, "null": size.classes}

    samplers = {
        "jaxgen": dit_peers.jaxgen_sampling(size.jaxgen(), params, data, **options),
        "torch eager": dit_peers.torch_sampling(peer, data, **options),
    }
    ours, theirs = samplers["jaxgen"](), samplers["torch eager"]()
    gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not gap < 1e-3:
        raise SystemExit(f"the two networks' samples differ: {gap:.1e} of the largest value")
    trainers = {
        "jaxgen": dit_peers.jaxgen_training(size.jaxgen(), params, data),
        "torch eager": dit_peers.torch_training(size.torch().train(), data),
    }
    first = {side: train() for side, train in trainers.items()}
    if abs(first["jaxgen"] / first["torch eager"] - 1) > 1e-4:
        raise SystemExit(f"the two networks' losses differ: {first}")
    for label, fields in VARIANTS.items() if variants else ():
        net = size.jaxgen(**fields)
        trainers[f"jaxgen {label}"] = dit_peers.jaxgen_training(net, params, data)
    if compiled:
        fast = torch.compile(size.torch().eval())
        samplers["torch.compile"] = dit_peers.torch_sampling(fast, data, **options)
        fast = torch.compile(size.torch().train())
        trainers["torch.compile"] = dit_peers.torch_training(fast, data)
    table = rows("train", name, size.batch, alternate(trainers, rounds, 2))
    return table + rows("sample", name, size.batch, alternate(samplers, rounds, 1))


def compile_times(depths: list[int]) -> list[dict[str, Any]]:
    """Seconds to trace and compile a training step at each depth, by scan and unrolled."""
    import jax.numpy as jnp

    table = []
    for depth in depths:
        size = dataclasses.replace(SIZES["small"], depth=depth)
        x = jnp.zeros((size.batch, size.image, size.image, size.channels))
        args = (x, jnp.zeros(size.batch), jnp.zeros(size.batch, jnp.int32))
        row: dict[str, Any] = {"depth": depth}
        for scan in (True, False):
            net = size.jaxgen(scan=scan)
            variables = jax.eval_shape(net.init, jax.random.key(0), *args)

            def loss(variables: Any, net: Any, args: Any) -> jax.Array:
                return jnp.square(net.apply(variables, *args)).mean()

            start = time.perf_counter()
            jax.jit(jax.grad(loss), static_argnums=1).lower(variables, net, args).compile()
            row["scan_s" if scan else "unrolled_s"] = time.perf_counter() - start
        table.append(row)
    return table


def show(table: list[dict[str, Any]]) -> None:
    """Print the rows as an aligned table."""
    cells = [list(table[0])]
    cells += [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()] for r in table]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    """Run the benchmark that the command line asks for."""
    jax.config.update("jax_enable_compilation_cache", False)
    if ARGUMENTS.depths:
        table = compile_times([int(depth) for depth in ARGUMENTS.depths.split(",")])
    else:
        table = []
        for name in ARGUMENTS.sizes.split(","):
            table += compare(
                name,
                ARGUMENTS.rounds,
                ARGUMENTS.steps,
                variants=ARGUMENTS.variants,
                compiled=ARGUMENTS.compile,
            )
    if ARGUMENTS.json:
        found = {"threads": ARGUMENTS.threads, "machine": machine.machine(), "rows": table}
        print(json.dumps(found))
    else:
        print(machine.line())
        show(table)


if __name__ == "__main__":
    main()
