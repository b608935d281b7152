"""Attention on this machine: every implementation that it has, forward and with gradients.

    python -m experiments.benchmarks.attention [--write] [--json] [--out FOLDER]
    python -m experiments.benchmarks.attention --tiny    # a check of the script, on any machine

On a GPU or TPU: (batch 32, heads 16, tokens 256, head 72), (8, 16, 1024, 72), (4, 16, 4096, 64), in
bfloat16, without a mask; TFLOP/s count the two products forward and five backward, and the ceiling
is a matrix product of 8192 on the same device. PyTorch's `scaled_dot_product_attention` runs beside
them where it is installed and finds the GPU. Elsewhere small sizes in float32. The sides alternate;
medians over rounds; compilation is not timed. "tokens" rows start from one projection and include
what it takes to get heads out of it (`fused_attention`).

An implementation that refuses a shape or fails at it is left out, and stderr says why. --out: the
rows as JSON and the table, written again after every shape.

--write puts the fastest of jaxgen's implementations with gradients into jaxgen/ops/measured.json,
for this kind of device and these classes of shapes; "auto" chooses by it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from experiments.benchmarks import machine  # noqa: E402
from jaxgen import files  # noqa: E402
from jaxgen.ops import attention, choice, fused_attention  # noqa: E402

SHAPES = [(32, 16, 256, 72), (8, 16, 1024, 72), (4, 16, 4096, 64)]
SMALL = [(2, 4, 64, 72), (1, 2, 256, 64)]
CANDIDATES = {
    "gpu": ("xla", "xla_narrow", "pallas_gpu", "cudnn"),
    "tpu": ("xla", "xla_narrow", "pallas_tpu"),
    "cpu": ("reference", "xla", "xla_narrow"),
}
HEAD = [
    "| shape | form | implementation | task | ms | TFLOP/s | of a matrix product |",
    "|-|-|-|-|-:|-:|-:|",
]
TABLE = Path(choice.__file__).with_name("measured.json")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="record the fastest for `auto`")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=20, help="calls a round")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for attention.json and attention.md")
    return parser.parse_args()


def medians(sides: dict[str, Callable[[], Any]], rounds: int, repeat: int) -> dict[str, float]:
    """Median seconds of a call; each side queues its calls and waits for the last."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            begin = time.perf_counter()
            for _ in range(repeat - 1):
                sides[name](False)
            sides[name](True)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - begin) / repeat)
    return {name: statistics.median(values) for name, values in seconds.items()}


def queued(fn: Callable[..., Any], *arguments: jax.Array) -> Callable[[bool], Any]:
    """A compiled call that waits for its results only if asked to."""
    run = jax.jit(fn).lower(*arguments).compile()

    def call(wait: bool) -> None:
        out = run(*arguments)
        if wait:
            jax.block_until_ready(out)

    return call


def with_gradients(fn: Callable[..., jax.Array], g: jax.Array) -> Callable[..., Any]:
    """Value and gradients; the cotangent is an argument of the last place."""

    def both(*arguments: jax.Array) -> Any:
        value, back = jax.vjp(fn, *arguments[:-1])
        return value, *back(arguments[-1])

    return both


def jax_sides(
    shape: tuple[int, ...], dtype: Any, names: tuple[str, ...], form: str
) -> dict[tuple[str, str], Callable[[bool], Any]]:
    """(implementation, "forward" or "both") -> a call. What fails at the shape is left out."""
    b, h, n, d = shape
    keys = jax.random.split(jax.random.key(0), 4)
    if form == "heads":
        xs = [jax.random.normal(key, shape).astype(dtype) for key in keys[:3]]
        g = jax.random.normal(keys[3], shape).astype(dtype)
    else:
        xs = [jax.random.normal(keys[0], (b, n, 3 * h * d)).astype(dtype)]
        g = jax.random.normal(keys[3], (b, n, h * d)).astype(dtype)
    sides = {}
    for name in names:

        def fn(*xs: jax.Array, name: str = name) -> jax.Array:
            if form == "heads":
                return attention(*xs, scale=d**-0.5, implementation=name)
            return fused_attention(*xs, heads=h, scale=d**-0.5, implementation=name)

        try:
            mine = {
                (name, "forward"): queued(fn, *xs),
                (name, "both"): queued(with_gradients(fn, g), *xs, g),
            }
            for call in mine.values():
                call(True)
        except Exception as error:  # whatever a kernel's compiler says, the others are measured
            said = str(error).strip().splitlines() or [type(error).__name__]
            print(f"{name} is left out at {shape}, {form}: {said[0][:300]}", file=sys.stderr)
        else:
            sides.update(mine)
    return sides


def torch_sides(
    shape: tuple[int, ...], small: bool
) -> dict[tuple[str, str], Callable[[bool], Any]]:
    """PyTorch's, where it is installed and sees the same kind of device."""
    try:
        import torch
    except ImportError:
        return {}
    cuda = jax.devices()[0].platform == "gpu"
    if cuda != torch.cuda.is_available():
        return {}
    place, dtype = ("cuda" if cuda else "cpu"), (torch.float32 if small else torch.bfloat16)
    q, k, v, g = (torch.randn(shape, device=place, dtype=dtype) for _ in range(4))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    trained = [each.detach().clone().requires_grad_() for each in (q, k, v)]

    def wait(yes: bool) -> None:
        if yes and cuda:
            torch.cuda.synchronize()

    def forward(yes: bool) -> None:
        with torch.no_grad():
            sdpa(q, k, v)
        wait(yes)

    def both(yes: bool) -> None:
        torch.autograd.grad(sdpa(*trained), trained, g)
        wait(yes)

    return {("torch", "forward"): forward, ("torch", "both"): both}


def ceiling(small: bool, rounds: int) -> float:
    """FLOP/s of a plain matrix product on this device."""
    size = 512 if small else 8192
    dtype = jnp.float32 if small else jnp.bfloat16
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    return 2 * size**3 / medians({"product": queued(jnp.matmul, a, a)}, rounds, 5)["product"]


def measure(arguments: argparse.Namespace, platform: str) -> Iterator[list[dict[str, Any]]]:
    """For each shape and form, a row for each implementation and task."""
    small = arguments.tiny or platform == "cpu"
    dtype = jnp.float32 if small else jnp.bfloat16
    top = ceiling(small, arguments.rounds)
    for shape in SMALL if small else SHAPES:
        b, h, n, d = shape
        for form in ("heads", "tokens"):
            sides = jax_sides(shape, dtype, CANDIDATES[platform], form)
            if form == "heads":
                sides |= torch_sides(shape, small)
            timings, rows = medians(sides, arguments.rounds, arguments.repeat), []
            for (name, task), seconds in timings.items():
                flops = 2 * b * h * n * n * d * (2 if task == "forward" else 7)
                key = choice.shape_class(form, jnp.dtype(dtype), n, n, d, None)
                rows.append(
                    dict(shape=shape, form=form, implementation=name, task=task, seconds=seconds,
                         flops_per_s=flops / seconds, of_ceiling=flops / seconds / top, key=key)
                )  # fmt: skip
            yield rows


def write(rows: list[dict[str, Any]], kind: str) -> None:
    """The fastest of jaxgen's by class, forward and backward, into the table."""
    table = json.loads(TABLE.read_text())
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        ours = row["task"] == "both" and row["implementation"] != "torch"
        key = row["key"]
        if ours and (key not in best or row["seconds"] < best[key]["seconds"]):
            best[key] = row
    table.setdefault(kind, {}).update({k: row["implementation"] for k, row in best.items()})
    TABLE.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {row['shape']} | {row['form']} | {row['implementation']} | {row['task']} | "
        f"{1e3 * row['seconds']:.3f} | {row['flops_per_s'] / 1e12:.2f} | {row['of_ceiling']:.0%} |"
    )


def main() -> None:
    """Run the benchmark that the command line asks for."""
    arguments = parse()
    if arguments.tiny:
        arguments.rounds, arguments.repeat = 2, 1
    platform, kind = choice.device()
    if arguments.write and (platform == "cpu" or arguments.tiny):
        raise SystemExit("--write: got a CPU or --tiny; allowed: on a GPU or TPU, whole.")
    print(machine.line(), file=sys.stderr)
    out = sys.stderr if arguments.json else sys.stdout
    print("\n".join(HEAD), file=out)
    report: dict[str, Any] = {"device": kind, "machine": machine.machine(), "rows": []}
    for fresh in measure(arguments, platform):
        report["rows"] += fresh
        print("\n".join(map(line, fresh)), file=out, flush=True)
        if arguments.out is not None:
            lines = [f"{kind}; {machine.line()}", "", *HEAD, *map(line, report["rows"])]
            files.write(arguments.out / "attention.json", json.dumps(report) + "\n")
            files.write(arguments.out / "attention.md", "\n".join(lines) + "\n")
    if arguments.write:
        write(report["rows"], kind)
    if arguments.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
