"""Planning for remote hardware: compile a run for it, read what the program costs.

The program is the one that `jaxgen train` compiles (or the sampler's), for a TPU topology by libtpu
on any machine, or for CPU devices. Times are bounds from peaks, not measurements.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from jaxgen.errors import invalid
from jaxgen.mesh import within
from jaxgen.method import with_frozen
from jaxgen.nn.flops import count
from jaxgen.plan.hlo import Costs, costs
from jaxgen.plan.machine import Chip, devices_of
from jaxgen.run.setup import (
    Setup,
    abstract_batch,
    make_sampler,
    sample_options,
    set_up,
    train_flops,
)
from jaxgen.training.loop import empty_tally, jitted_step
from jaxgen.training.sharding import batch_devices, batch_sharding, replicated, state_sharding

PyTree = Any
GIB = 2**30


def plan(
    config: ml_collections.ConfigDict,
    topology: str,
    what: str = "train",
    *,
    trusted: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compile `what` ("train": one update; "sample": one batch of samples) and say what it costs.

    topology: "v5e:8x8" and the like (see `machine.CHIPS`), or "cpu:8". Numbers are of one device
    unless they say otherwise; memory in GiB, times in ms. trusted: as `set_up` takes it. Raises
    UsageError for a topology that there is not, a config that does not fit it, or a method without
    what is asked.
    """
    if what not in ("train", "sample"):
        raise invalid("--what", what, "train, sample")
    devices, chip = devices_of(topology)
    setup = set_up(config, devices=devices, data=False, trusted=trusted)
    lowered, images, useful = (_update if what == "train" else _sampler)(setup)
    begin = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _too_large(setup, topology, chip, what, str(error))
    seconds = time.monotonic() - begin
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    counted = costs(compiled.as_text(), len(devices))
    state = jax.eval_shape(setup.method.init, jax.random.key(0))
    return {
        "topology": topology,
        "devices": len(devices),
        "mesh": {k: int(v) for k, v in setup.mesh.shape.items()},
        "what": what,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "images": images,
        "useful_flops": useful / len(devices),
        "compiled_flops": counted.flops,
        "kernels_not_counted": dict(counted.opaque),
        "hbm_bytes": counted.bytes,
        "memory_gib": {
            "arguments": memory.argument_size_in_bytes / GIB,
            "temporaries": memory.temp_size_in_bytes / GIB,
            "code": memory.generated_code_size_in_bytes / GIB,
            "peak": peak / GIB,
            "chip": chip and chip.memory / GIB,
        },
        "fits": chip is None or peak <= chip.memory,
        "collectives": [
            {"kind": kind, "devices": group, "count": number, "bytes": size}
            for (kind, group), (number, size) in sorted(counted.collectives.items())
        ],
        "compile_seconds": seconds,
        "roofline": chip and _roofline(chip, counted, useful / len(devices), images),
    }


def _update(setup: Setup) -> tuple[Any, int, float]:
    """The lowered step on abstract arguments, its images, its useful FLOPs on all devices."""
    method, mesh = setup.method, setup.mesh
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(mesh, abstract)
    size, rows = setup.data.batch_size, batch_sharding(mesh)
    batch = {k: _abstract(a.shape, a.dtype, rows) for k, a in abstract_batch(setup).items()}
    tally = jax.eval_shape(lambda: empty_tally(method, abstract, batch))
    everywhere = replicated(mesh)
    lowered = jitted_step(method, setup.layout, shardings).lower(
        jax.tree.map(lambda a, s: _abstract(a.shape, a.dtype, s), abstract, shardings),
        jax.tree.map(lambda a: _abstract(a.shape, a.dtype, everywhere), tally),
        batch,
        _abstract((), jax.random.key(0).dtype, everywhere),
        _laid(method.frozen, mesh),
    )
    return lowered, size, size * train_flops(setup)


def _laid(tree: Any, mesh: Any) -> Any:
    """Shapes and dtypes of a tree's leaves, as they lie on the mesh."""
    return jax.tree.map(
        lambda a, s: _abstract(a.shape, a.dtype, s), tree, state_sharding(mesh, tree)
    )


def _sampler(setup: Setup) -> tuple[Any, int, float]:
    """The lowered sampler; useful FLOPs are those of its program as written."""
    method, mesh = setup.method, setup.mesh
    if method.sampler is None:
        raise invalid("--what", "sample", "train: this method does not generate")
    fn = make_sampler(setup, sample_options(setup, {})).fn
    size, across = setup.evaluate.batch_size, batch_devices(mesh)
    if size % across:
        raise invalid("config.evaluate.batch_size", size, f"a multiple of {across} devices")
    state = jax.eval_shape(method.init, jax.random.key(0))
    params = _laid(with_frozen(method, state.params), mesh)
    rows = batch_sharding(mesh)
    keys = _abstract((size,), jax.random.key(0).dtype, rows)
    labels = _abstract((size,), jnp.int32, rows)
    useful = 2 * count(jax.make_jaxpr(fn)(params, keys, labels).jaxpr)
    fn = within(setup.layout, fn)
    return jax.jit(fn, out_shardings=rows).lower(params, keys, labels), size, useful


def _abstract(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _roofline(chip: Chip, counted: Costs, useful: float, images: int) -> dict[str, Any]:
    """Times by what each part of the chip has to do, and the bounds that follow.

    Three upper bounds of the MFU: everything overlaps; compute and memory traffic do not overlap
    each other (serial); nothing overlaps.
    """
    times = {
        "compute": 1e3 * counted.flops / chip.flops,
        "memory": 1e3 * counted.bytes / chip.bandwidth,
        "interconnect": 1e3 * counted.wire / chip.wire,
    }
    ideal, longest = 1e3 * useful / chip.flops, max(times.values())
    return {
        "ms": times,
        "binds": max(times, key=lambda k: times[k]),
        "mfu_bound_overlapped": ideal / longest,
        "mfu_bound_serial": ideal / max(times["compute"] + times["memory"], times["interconnect"]),
        "mfu_bound_nothing_overlaps": ideal / sum(times.values()),
        "images_per_second_bound": 1e3 * images / longest,
    }


def _too_large(
    setup: Setup, topology: str, chip: Chip | None, what: str, error: str
) -> dict[str, Any]:
    """What can be said of a program that the compiler refuses for its memory."""
    line = next((x for x in error.splitlines() if "RESOURCE_EXHAUSTED" in x), error)
    wanted = re.search(r"temporaries \(([\d.]+)G\)", line)
    return {
        "topology": topology,
        "mesh": {k: int(v) for k, v in setup.mesh.shape.items()},
        "what": what,
        "fits": False,
        "memory_gib": {
            "peak": None,
            "temporaries": wanted and float(wanted.group(1)),
            "chip": chip and chip.memory / GIB,
        },
        "compiler": line.strip()[:500],
    }
