"""What the name of a TPU means: chips, workers, runtime version, and the topology to plan for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPUs, as Cloud TPU's documentation describes it.

    counts: what the number in the name counts, per chip (2: TensorCores, 1: chips). devices: JAX
    devices a chip. sizes: the numbers there are, or None for every multiple of 8 up to `most`.
    whole: chips on one worker at most; with more, each worker has 4. runtime: the software version
    that JAX wants. chip: its name in `jaxgen plan`, or None. shapes: chips to topology.
    """

    counts: int
    devices: int
    whole: int
    runtime: str
    chip: str | None
    sizes: tuple[int, ...] | None = None
    most: int = 0
    shapes: Mapping[int, str] = dataclasses.field(default_factory=dict)


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"},
    **{256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"},
}
BASE = "tpu-ubuntu2204-base"

GENERATIONS = {
    "v2": Generation(2, 2, 4, BASE, None, (8, 32, 128, 256, 512)),
    "v3": Generation(2, 2, 4, BASE, None, (8, 32, 128, 256, 512, 1024, 2048)),
    "v4": Generation(2, 1, 4, BASE, "v4", None, 8192, CUBES),
    "v5litepod": Generation(1, 1, 8, "v2-alpha-tpuv5-lite", "v5e", tuple(FLAT), 0, FLAT),
    "v5p": Generation(2, 1, 4, "v2-alpha-tpuv5", "v5p", None, 12288, CUBES),
    "v6e": Generation(1, 1, 8, "v2-alpha-tpuv6e", "v6e", tuple(FLAT), 0, FLAT),
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A slice: its name, chips, JAX devices, workers (virtual machines), default runtime version.

    topology: for `jaxgen plan --topology`, or None where that does not know it.
    """

    name: str
    chips: int
    devices: int
    workers: int
    runtime: str
    topology: str | None


def parse(name: str) -> Accelerator:
    """ "v5litepod-64" as 64 chips on 16 workers. Raises UsageError that names the allowed forms."""
    kind, _, number = name.partition("-")
    generation = GENERATIONS.get(kind)
    size = int(number) if number.isascii() and number.isdigit() else 0
    if generation is None or not _allowed(generation, size):
        raise invalid("--accelerator", name, "; ".join(_form(k) for k in GENERATIONS))
    chips = size // generation.counts
    shape = generation.shapes.get(chips)
    return Accelerator(
        name=name,
        chips=chips,
        devices=chips * generation.devices,
        workers=1 if chips <= generation.whole else chips // 4,
        runtime=generation.runtime,
        topology=None if generation.chip is None or shape is None else f"{generation.chip}:{shape}",
    )


def _allowed(generation: Generation, size: int) -> bool:
    if generation.sizes is not None:
        return size in generation.sizes
    return size % 8 == 0 and 8 <= size <= generation.most


def _form(kind: str) -> str:
    generation = GENERATIONS[kind]
    if generation.sizes is None:
        return f"{kind}-N with N a multiple of 8 up to {generation.most}"
    return f"{kind}-N with N in {', '.join(map(str, generation.sizes))}"
