"""Where the time of compiled steps goes: JAX's profile as a table by kind of operation.

`jax.profiler.ProfileData` reads what `jax.profiler.trace` wrote; no TensorFlow.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxgen import files

# The first that fits an operation's and its kernel's name, in lower case. A fusion is called after
# what is in it, so that the dearest thing comes first.
KINDS = {
    "communication": r"nccl|all-reduce|all-gather|reduce-scatter|collective|all-to-all",
    "attention": r"fmha|flash|sdpa|attention",
    "matrix products": r"ynn|onednn|gemm|cublas|cutlass|nvjet|wgmma|xmma|dot|conv(?!ert)|matmul",
    "loops and calls": r"^(while|call|conditional|tuple)",
    "reductions and norms": r"reduce|norm|softmax",
    "random numbers": r"rng|threefry|random",
    "copies and layout": r"memcpy|memset|copy|transpose|slice|concat|pad|gather|scatter|reshape",
    "element-wise": r"fusion|loop|add|multiply|subtract|tanh|exponential|select|convert|broadcast|"
    r"compare|divide|iota|wrapped|power|sqrt|negate|maximum|minimum|bitcast",
}
Event = tuple[str, float, float]
"""Name, start and end, in seconds."""


def kind(name: str) -> str:
    """The kind of an operation by its name: "loop_add_fusion.3" is element-wise."""
    for label, pattern in KINDS.items():
        if re.search(pattern, name.lower()):
            return label
    return "other"


def own_times(events: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """(name, seconds without those of the events inside it), of one line of a timeline."""
    stack: list[list[Any]] = []  # name, end, own seconds
    for name, start, end in sorted(events, key=lambda e: (e[1], -e[2])):
        while stack and stack[-1][1] <= start:
            yield stack[-1][0], stack.pop()[2]
        if stack:
            stack[-1][2] -= end - start
        stack.append([name, end, end - start])
    for name, _, seconds in stack:
        yield name, seconds


def covered(events: Iterable[Event]) -> float:
    """Seconds in which at least one event runs."""
    total, last = 0.0, float("-inf")
    for _, start, end in sorted(events, key=lambda e: e[1]):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def summarise(lines: Iterable[list[Event]]) -> dict[str, Any]:
    """Of timelines (streams of a card, threads of a processor): seconds by kind, and idle ones.

    wall: from the first event to the end of the last. idle: when nothing runs on any line. Kinds
    may overlap on several lines, so that their sum may exceed what is not idle.
    """
    lines = [line for line in lines if line]
    events = [event for line in lines for event in line]
    wall = max(e[2] for e in events) - min(e[1] for e in events) if events else 0.0
    seconds: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, spent in own_times(line):
            seconds[kind(name)] += spent
            operations[name] += spent
    dearest = sorted(operations.items(), key=lambda item: -item[1])[:10]
    kinds = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return {"wall": wall, "idle": wall - covered(events), "kinds": kinds, "dearest": dict(dearest)}


def newest(folder: Path) -> Path:
    """The file of the last profile below a folder."""
    return max(folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)


def read(folder: Path) -> list[list[Event]]:
    """The timelines of compiled operations in the last profile below a folder.

    A card's streams, a TPU's "XLA Ops", or a CPU's threads as far as they run such operations.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(newest(folder))).planes)
    cards = [p for p in planes if p.name.startswith("/device:")]
    streams = re.compile(r"Stream|XLA Ops")
    if any(streams.match(line.name) for plane in cards for line in plane.lines):
        matching = [line for p in cards for line in p.lines if streams.match(line.name)]
        return [[_event(e) for e in line.events] for line in matching]
    lines = [line for plane in planes for line in plane.lines]
    return [[_event(e) for e in line.events if "hlo_op" in dict(e.stats)] for line in lines]


def _event(event: Any) -> Event:
    operation = str(dict(event.stats).get("hlo_op", ""))
    name = event.name if event.name.startswith(operation) else f"{operation} {event.name}"
    return name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9


def profile(step: Callable[[], Any], repeat: int, keep: Path | None = None) -> dict[str, Any]:
    """Trace `repeat` calls of a function that has been compiled; see `summarise`.

    keep: a file for what JAX wrote (.xplane.pb), which XProf and TensorBoard show.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # only what the devices did is read
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(repeat):
                step()
        if keep is not None:
            files.write(keep, newest(Path(folder)).read_bytes())
        return {"steps": repeat, **summarise(read(Path(folder)))}


def table(summary: dict[str, Any]) -> list[str]:
    """The summary as rows of Markdown: kind, milliseconds a step, share of the wall."""
    rows = ["| kind of operation | ms a step | share |", "|-|-:|-:|"]
    times = {**summary["kinds"], "nothing running": summary["idle"]}
    for name, seconds in times.items():
        share = seconds / summary["wall"] if summary["wall"] else 0.0
        rows.append(f"| {name} | {1e3 * seconds / summary['steps']:.2f} | {share:.1%} |")
    return rows
