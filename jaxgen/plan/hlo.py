"""What a compiled XLA program does, read from its text: arithmetic, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once, and traffic that never leaves the chip. Here
a loop's body counts as often as it runs, and only what lies in the device's main memory (HBM;
layouts without another memory space) counts as traffic. The text has the shapes of one device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16,
    "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64,
    "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute",
)  # fmt: skip
# Bookkeeping that moves nothing: the second half of an asynchronous pair, views, tuples.
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "iota", "partition-id", "replica-id", "opt-barrier", "async-start",
    "async-update",
}  # fmt: skip
# Custom calls of the TPU compiler that only name memory or order asynchronous work.
NOTHING = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "ConcatBitcast",
)
SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: its dtype, dimensions, and whether it lies in main memory."""

    dtype: str
    dims: tuple[int, ...]
    main: bool

    @property
    def bytes(self) -> float:
        """Without padding."""
        return math.prod(self.dims) * BITS.get(self.dtype, 32) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    def called(self, role: str) -> str | None:
        """The computation that an attribute names."""
        match = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return match and match.group(1)

    def integers(self, key: str) -> tuple[int, ...]:
        """An attribute such as `dimensions={0,2}`."""
        match = re.search(rf"\b{key}=\{{([0-9,]*)\}}", self.attributes)
        return tuple(map(int, filter(None, match.group(1).split(",")))) if match else ()


@dataclasses.dataclass
class Costs:
    """Of one device and one run of the program.

    flops: of matrix products and convolutions, two a multiply-add. bytes: main memory read and
    written. collectives: (kind, devices in a group) -> [count, bytes each device gives or gets].
    wire: bytes that leave a device over the interconnect, if collectives go around rings. opaque:
    how often custom calls run whose arithmetic the text does not tell (kernels), by target.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[tuple[str, int], list[float]] = dataclasses.field(default_factory=dict)
    wire: float = 0.0
    opaque: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: Costs, times: float = 1.0) -> None:
        """Add another program's costs, so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.wire += times * other.wire
        for key, (count, size) in other.collectives.items():
            mine = self.collectives.setdefault(key, [0.0, 0.0])
            mine[0] += times * count
            mine[1] += times * size
        for target, count in other.opaque.items():
            self.opaque[target] += int(times * count)


def costs(text: str, devices: int) -> Costs:
    """The costs of a compiled program's text (`compiled.as_text()`) on `devices` devices."""
    return _Program(text, devices).costs()


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each its instructions by name in order; and the entry's name."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.rstrip().endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            current = computations.setdefault(name, {})
            if line.startswith("ENTRY"):
                entry = name
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction:
    head, rest = line.strip().split(" = ", 1)
    root = head.startswith("ROOT ")
    name = head.removeprefix("ROOT ").lstrip("%")
    end = _close(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _close(rest, start)
    inside = rest[start + 1 : end - 1]
    return Instruction(
        name, rest[:start], tuple(_shapes(kind)), tuple(NAME.findall(inside)), inside,
        rest[end:], root,
    )  # fmt: skip


def _close(text: str, start: int) -> int:
    """One past the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in SHAPE.findall(text):
        main = not re.search(r"S\([1-9]\)", layout or "")
        yield Shape(dtype, tuple(map(int, filter(None, dims.split(",")))), main)


class _Program:
    def __init__(self, text: str, devices: int) -> None:
        self.computations, self.entry = parse(text)
        self.devices = devices
        self.known: dict[tuple[str, bool], Costs] = {}
        self.channels: set[tuple[str, str]] = set()

    def costs(self) -> Costs:
        return self.of(self.entry, fused=False)

    def of(self, computation: str, *, fused: bool) -> Costs:
        """Costs of a computation; fused: only arithmetic and collectives, not traffic."""
        key = (computation, fused)
        if key not in self.known:
            total = Costs()
            for each in self.computations.get(computation, {}).values():
                self._add(total, each, computation, fused)
            self.known[key] = total
        return self.known[key]

    def _add(self, total: Costs, it: Instruction, where: str, fused: bool) -> None:
        if it.opcode == "while":
            times = self.trips(it)
            for role in ("body", "condition"):
                total.add(self.of(it.called(role) or "", fused=fused), times)
            return
        if it.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", it.attributes)
            names = NAME.findall(branches.group(1)) if branches else []
            names += [n for r in ("true_computation", "false_computation") if (n := it.called(r))]
            total.add(max((self.of(n, fused=fused) for n in names), key=lambda c: c.flops))
            return
        inner = it.called("calls") or (it.called("to_apply") if it.opcode == "call" else None)
        if inner is not None:
            # A reduce-scatter on TPU is a fusion of an all-reduce and the slice that is kept.
            total.add(self.of(inner, fused=fused or it.opcode == "fusion"))
        if it.opcode == "convolution":
            total.flops += 2 * self.convolution(it, where)
        elif it.opcode == "dot":
            left = self.shape(where, it.operands[0])
            contract = math.prod(left.dims[i] for i in it.integers("lhs_contracting_dims"))
            total.flops += 2 * math.prod(it.shapes[0].dims) * contract
        elif it.opcode == "custom-call":
            # Kernels say what they cost; what does not is counted by name.
            said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', it.attributes)
            target = re.search(r'custom_call_target="([^"]*)"', it.attributes)
            if said:
                total.flops += float(said.group(1))
            elif target and re.search("tpu_custom_call|triton|cudnn|cublas", target.group(1)):
                total.opaque[target.group(1)] += 1
        kind = it.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(total, it, kind, where)
        if not fused:
            total.bytes += self.traffic(it, where)

    def trips(self, it: Instruction) -> int:
        """How often a while loop runs: as XLA says, or the bound its condition compares with."""
        known = re.search(r"known_trip_count\W+n\W+(\d+)", it.attributes)
        if known:
            return int(known.group(1))
        bounds = [
            int(bound.inside)
            for bound in self.computations[it.called("condition") or ""].values()
            if bound.opcode == "constant" and re.fullmatch(r"\d+", bound.inside)
        ]
        return max(bounds, default=1)

    def shape(self, where: str, name: str) -> Shape:
        """The first shape of an instruction of a computation."""
        instruction = self.computations[where].get(name)
        return (
            instruction.shapes[0]
            if instruction and instruction.shapes
            else Shape("token", (), False)
        )

    def convolution(self, it: Instruction, where: str) -> float:
        """Multiply-adds, of places where the window lies on numbers (not on padding or holes)."""
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", it.attributes)
        assert labels, it
        left, kernel, out = labels.groups()
        a, b = (self.shape(where, name).dims for name in it.operands[:2])
        size = dict(zip(out, it.shapes[0].dims, strict=True))
        inputs, window = dict(zip(left, a, strict=True)), dict(zip(kernel, b, strict=True))
        given = dict(re.findall(r"(\w+)=([\dx_\-]+)", _braces(it.attributes, "window")))
        spatial = sorted(c for c in out if c.isdigit())
        total = float(size["b"] * size["f"] * window["i"])
        for axis, label in enumerate(spatial):

            def field(key: str, default: str, axis: int = axis) -> str:
                return given[key].split("x")[axis] if key in given else default

            low = int(field("pad", "0_0").split("_")[0])
            stride, hole = int(field("stride", "1")), int(field("lhs_dilate", "1"))
            reach = int(field("rhs_dilate", "1"))
            at = np.arange(size[label])[:, None] * stride - low
            at = at + np.arange(window[label])[None] * reach
            total *= int(((at % hole == 0) & (at >= 0) & (at < inputs[label] * hole)).sum())
        return total

    def _collective(self, total: Costs, it: Instruction, kind: str, where: str) -> None:
        channel = re.search(r"channel_id=(\d+)", it.attributes)
        # Pieces of one asynchronous collective repeat it inside the fusions that hide it.
        if channel:
            key = (channel.group(1), kind)
            if key in self.channels and ("async_collective" in where or "fused" in where):
                return
            self.channels.add(key)
        group = self.group(it)
        given = sum(self.shape(where, name).bytes for name in it.operands)
        taken = max((s.bytes for s in it.shapes), default=0.0)
        size = max(given, taken) if kind == "all-gather" else given
        share = (group - 1) / max(group, 1)
        if kind == "all-reduce" and "reduce-scatter" in where:
            kind = "reduce-scatter"
        entry = total.collectives.setdefault((kind, group), [0.0, 0.0])
        entry[0] += 1
        entry[1] += size
        total.wire += size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)

    def group(self, it: Instruction) -> int:
        """How many devices take part together."""
        text = it.attributes
        if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
            return int(match.group(2))
        if match := re.search(
            r"replica_groups=mesh\[([^\]]*)\][^{]*(?:\([^)]*\)[^{]*)?\{([^}]*)\}", text
        ):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
            return math.prod(int(sizes.get(a, 1)) for a in re.findall(r"'(\w+)'", match.group(2)))
        if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
            return len(match.group(1).split(","))
        return self.devices

    def traffic(self, it: Instruction, where: str) -> float:
        """Bytes of main memory that an instruction reads and writes."""
        if it.opcode in FREE or it.opcode.endswith("-done"):
            return 0.0
        if it.opcode == "custom-call" and any(f'"{t}"' in it.attributes for t in NOTHING):
            return 0.0
        if it.opcode in ("copy-start", "slice-start"):
            # From one memory to another: what arrives, once for each side that is main memory.
            # A copy says (to, from, ...), a slice (from, to, ...).
            arrived = it.shapes[0 if it.opcode == "copy-start" else 1]
            source = self.shape(where, it.operands[0])
            return arrived.bytes * (arrived.main + source.main)
        if it.opcode == "dynamic-slice":
            size = it.shapes[0].bytes
            return size * (it.shapes[0].main + self.shape(where, it.operands[0]).main)
        if it.opcode == "dynamic-update-slice":
            update = self.shape(where, it.operands[1])
            return update.bytes * (update.main + it.shapes[0].main)
        body = self.computations.get(it.called("calls") or "", {}) if it.opcode == "fusion" else {}
        read = self._read(it, where, body)
        return read + self._written(it, body)

    def _read(self, it: Instruction, where: str, body: dict[str, Instruction]) -> float:
        total = 0.0
        for place, name in enumerate(it.operands):
            shape = self.shape(where, name)
            if not shape.main or name not in self.computations[where]:
                continue
            users = list(self._users(body, _parameter(body, place))) if body else []
            sliced = [u for u, _ in users if u.opcode in ("dynamic-slice", "slice", "gather")]
            # Written over in place, the rest is not read.
            updated = [
                u
                for u, operand in users
                if u.opcode == "dynamic-update-slice" and u.operands[0] == operand
            ]
            if users and len(sliced) + len(updated) == len(users):
                total += min(shape.bytes, sum(u.shapes[0].bytes for u in sliced))
            else:
                total += shape.bytes
        return total

    def _users(self, body: dict[str, Instruction], name: str) -> Iterator[tuple[Instruction, str]]:
        """What uses a value inside a fusion, and its name there, through views and fusions."""
        for each in body.values():
            if name not in each.operands:
                continue
            inner = each.called("calls") if each.opcode == "fusion" else None
            if each.opcode in ("bitcast", "reshape"):
                yield from self._users(body, each.name)
            elif inner in self.computations:
                within = self.computations[inner or ""]
                for place, operand in enumerate(each.operands):
                    if operand == name:
                        yield from self._users(within, _parameter(within, place))
            else:
                yield each, name

    def _written(self, it: Instruction, body: dict[str, Instruction]) -> float:
        roots = self._results(body)
        if len(roots) != len(it.shapes):
            roots = [None] * len(it.shapes)
        total = 0.0
        for shape, root in zip(it.shapes, roots, strict=True):
            total += (shape.bytes if root is None else root) if shape.main else 0.0
        return total

    def _results(self, body: dict[str, Instruction]) -> list[float | None]:
        """For each result of a fusion, the bytes written if it is an update in place, or None."""
        root = next((i for i in body.values() if i.root), None)
        if root is None:
            return []
        made: list[float | None] = []
        for name in root.operands if root.opcode == "tuple" else [root.name]:
            each, within = body.get(name), body
            while each is not None:
                inner = each.called("calls") if each.opcode == "fusion" else None
                if each.opcode in ("bitcast", "reshape") and each.operands:
                    each = within.get(each.operands[0])
                elif inner in self.computations and len(each.shapes) == 1:
                    within = self.computations[inner or ""]
                    each = next((i for i in within.values() if i.root), None)
                else:
                    break
            written = None
            if each is not None and each.opcode == "dynamic-update-slice":
                update = within.get(each.operands[1])
                written = update.shapes[0].bytes if update else None
            made.append(written)
        return made


def _braces(text: str, key: str) -> str:
    match = re.search(rf"\b{key}=\{{([^}}]*)\}}", text)
    return match.group(1) if match else ""


def _parameter(body: dict[str, Instruction], place: int) -> str:
    """The name inside a computation of its argument number `place`."""
    for each in body.values():
        if each.opcode == "parameter" and each.inside == str(place):
            return each.name
    return ""
