"""Compile a config for remote hardware: memory, arithmetic, traffic, bounds.

jaxgen plan --config configs/imagenet256_dit.py:XL/2 --topology v5e:8x8 --config.mesh.fsdp=8

TPU topologies need `pip install libtpu` and no TPU. Nothing is measured: times are what the chip's
peaks allow at best.
"""

from __future__ import annotations

import argparse
from typing import Any

PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen plan`."""
    parser.add_argument(
        "--config",
        required=True,
        help="a Python file with get_config(), file:ARG, or the folder of a run or a model",
    )
    parser.add_argument("--topology", required=True, help="v4:2x2x4, v5e:8x8, v6e:4x4, cpu:8, ...")
    parser.add_argument("--what", default="train", help="train (the default) or sample")
    parser.add_argument(
        "--sweep",
        help="find the best: 'data.batch_size=512,1024;model.remat=dots,full;mesh.fsdp=1,8'",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile in a process of its own; print a table, or return JSON."""
    from jaxgen.plan.ask import ask, improvements, poor, remedies, sweep
    from jaxgen.plan.machine import split
    from jaxgen.training.log import say

    split(args.topology)
    asked = (args.config, args.overrides, args.topology, args.what)
    if args.sweep:
        rows = sweep(*asked, args.sweep, say)
        if not args.json:
            print("\n".join(_line(row) for row in rows))
        return {"sweep": rows}
    answer = ask(*asked)
    if not answer["fits"]:
        answer["tried"] = remedies(*asked, say)
    elif poor(answer):
        answer["tried"] = improvements(args.config, args.overrides, args.topology, answer, say)
    if not args.json:
        print(table(answer))
    return answer


def table(answer: dict[str, Any]) -> str:
    """The answer for people."""
    memory, chip = answer["memory_gib"], answer["memory_gib"]["chip"]
    mesh = " ".join(f"{k}={v}" for k, v in answer["mesh"].items())
    lines = [f"{answer['what']} on {answer['topology']} ({mesh}); of one device:"]

    def add(name: str, text: str) -> None:
        lines.append(f"  {name:<22}{text}")

    if memory["peak"] is not None:
        of = "" if chip is None else f" of {chip:.0f}"
        add("parameters (all)", f"{answer['parameters'] / 1e6:,.1f} M")
        add("memory", f"{memory['peak']:.2f} GiB{of} (arguments {memory['arguments']:.2f}, "
            f"temporaries {memory['temporaries']:.2f}, code {memory['code']:.2f})")  # fmt: skip
        add("useful FLOPs", f"{_unit(answer['useful_flops'])} "
            f"({answer['images']} images on all devices)")  # fmt: skip
        add("compiled FLOPs", _unit(answer["compiled_flops"]))
        for name, number in answer["kernels_not_counted"].items():
            add("", f"without {number} calls of {name}, which does not say its cost")
        add("memory traffic", _unit(answer["hbm_bytes"]) + "B")
        for each in answer["collectives"]:
            among = f"{each['count']:.0f} among {each['devices']} devices"
            add(each["kind"], f"{among}, {_unit(each['bytes'])}B")
        add("compile", f"{answer['compile_seconds']:.0f} s")
        line = answer["roofline"]
        if line is not None:
            times = ", ".join(f"{k} {v:.1f} ms" for k, v in line["ms"].items())
            add("bounds", f"{times}: bound by {line['binds']}")
            full, some, none = (
                100 * line[f"mfu_bound_{n}"] for n in ("overlapped", "serial", "nothing_overlaps")
            )
            add("MFU upper bounds", f"{full:.1f} % with full overlap, {some:.1f} % without overlap "
                f"of compute and memory, {none:.1f} % without any")  # fmt: skip
            add("images/s at most", f"{line['images_per_second_bound']:,.0f}")
    if not answer["fits"]:
        over = "" if memory["peak"] is None else f", {memory['peak'] - chip:.2f} GiB too much"
        lines.append(f"DOES NOT FIT{over}.")
        lines += [f"  {answer['compiler']}"] if "compiler" in answer else []
    elif "tried" in answer:
        line = answer["roofline"]
        bound = 100 * line["mfu_bound_overlapped"]
        lines.append(f"POOR: bound by {line['binds']}, MFU at most {bound:.0f} %.")
    if "tried" in answer:
        lines += ["Tried:"] + [f"  {_line(row)}" for row in answer["tried"]]
    return "\n".join(lines)


def _unit(number: float) -> str:
    """12_300_000 as "12.3 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.4g} {unit}"
    return f"{number:,.0f} "


def _line(row: dict[str, Any]) -> str:
    change = " ".join(row["change"])
    if "error" in row:
        return f"{change}: {row['error']}"
    peak = row["memory_gib"]["peak"]
    text = f"{change}: {'fits' if row['fits'] else 'does not fit'}"
    if peak is not None:
        text += f", {peak:.2f} GiB, {_unit(row['compiled_flops'])}FLOP"
        text += f", {_unit(row['hbm_bytes'])}B"
    elif row["memory_gib"].get("temporaries"):
        text += f", temporaries alone {row['memory_gib']['temporaries']:.1f} GiB"
    if row.get("roofline"):
        line = row["roofline"]
        text += f", at most {line['images_per_second_bound']:,.0f} images/s"
        text += f", MFU {100 * line['mfu_bound_overlapped']:.0f} %"
    return text
