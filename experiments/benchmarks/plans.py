"""What the DiT configs cost on TPU pods, compiled for them by libtpu: one table, no TPU.

    python -m experiments.benchmarks.plans [--only v5e] [--json]

Global batch 1024, bfloat16 compute, float32 parameters, Adam and one average; parameters cut over 8
devices, the batch over all. Needs `pip install libtpu`. Nothing is measured on a TPU: bounds are
from the chips' peaks.
"""

from __future__ import annotations

import argparse
import json

from jaxgen.plan.ask import ask

LARGE = "data.holds.shape=(64,64,4)"
CASES = [
    ("XL/2", "v5e:8x8", ["model.attention=xla"]),
    ("XL/2", "v5e:8x8", []),
    ("L/2", "v5e:8x8", []),
    ("B/2", "v5e:8x8", []),
    ("XL/2", "v6e:8x8", []),
    ("XL/2", "v5p:4x4x4", []),
    ("XL/2", "v5e:8x8", [LARGE, "train.accumulate=4"]),
]
SHARED = ["mesh.fsdp=8", "data.batch_size=1024"]


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="what the topology begins with")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="the smallest model on four chips")
    args = parser.parse_args()
    cases, shared = CASES, SHARED
    if args.tiny:
        cases, shared = [("S/8", "v5e:2x2", [])], ["mesh.fsdp=2", "data.batch_size=8"]
    print("| model, tokens | on | attention | useful, compiled TFLOP | traffic | peak memory | "
          "compute, memory, wires | "
          "MFU upper bound with full overlap, without overlap of compute and memory, without any | "
          "compile |")  # fmt: skip
    print("|-|-|-|-:|-:|-:|-:|-:|-:|")
    rows = []
    for size, topology, changes in cases:
        if not topology.startswith(args.only):
            continue
        config = f"configs/imagenet256_dit.py:{size}"
        answer = ask(config, [*shared, *changes], topology, "train")
        rows.append({"config": config, "changes": changes, **answer})
        if answer["memory_gib"]["peak"] is None:
            print(f"| {size} | {topology} | does not fit |", flush=True)
            continue
        line, memory = answer["roofline"], answer["memory_gib"]
        times = ", ".join(f"{line['ms'][k]:.1f}" for k in ("compute", "memory", "interconnect"))
        bounds_of = ("overlapped", "serial", "nothing_overlaps")
        bounds = ", ".join(f"{100 * line['mfu_bound_' + bound]:.0f} %" for bound in bounds_of)
        attention = "xla" if "model.attention=xla" in changes else "auto"
        tokens = 1024 if LARGE in changes else 256
        print(
            f"| {size}, {tokens} | {topology} | {attention} | {answer['useful_flops'] / 1e12:.2f}, "
            f"{answer['compiled_flops'] / 1e12:.2f} | {answer['hbm_bytes'] / 1e9:.1f} GB | "
            f"{memory['peak']:.2f} of {memory['chip']:.0f} GiB | {times} ms | "
            f"{bounds} | {answer['compile_seconds']:.0f} s |",
            flush=True,
        )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
