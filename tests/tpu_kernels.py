"""Compiles every TPU kernel with libtpu for the chips named and prints what became of it as JSON.

    python -m tests.tpu_kernels v5e:2x2 v5p:2x2x1 v6e:2x2

To be run in the environment that `jaxgen.plan.machine.environment` gives.
"""

from __future__ import annotations

import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.ops import BlockCausal, Causal, Full, Prefix, attention, fused_attention
from jaxgen.plan.hlo import costs
from jaxgen.plan.machine import devices_of

# dtype, heads, groups, tokens, keys, head, mask, bias, number of valid keys
HEADS = {
    "single": ("bfloat16", 4, 2, 256, 256, 72, Causal(), None, None),
    "single, ragged": ("float32", 2, 2, 300, 77, 96, Full(), (1, 2, 1, 77), 60),
    "single, rows": ("bfloat16", 1, 1, 1000, 1000, 80, BlockCausal(48), None, None),
    "flash": ("bfloat16", 4, 2, 4096, 4096, 64, BlockCausal(48), None, None),
    "flash, ragged": ("float32", 2, 2, 600, 1500, 128, Prefix(77), (1, 1, 600, 1500), 1400),
}
# dtype, heads, groups, tokens, head, mask, norm and rotation
FUSED = {
    "fused": ("bfloat16", 4, 4, 256, 72, Full(), False),
    "fused, ragged": ("float32", 2, 1, 100, 80, Prefix(9), True),
    "fused, rows": ("bfloat16", 1, 1, 1024, 64, Causal(), True),
}


def heads_case(dtype, h, g, n, m, d, mask, bias, keys):
    """A function of arrays, their shapes, and multiply-adds of its value and gradients."""

    def fn(q, k, v, *bias):
        return attention(
            q, k, v, scale=d**-0.5, mask=mask, bias=bias[0] if bias else None, keys=keys,
            implementation="auto" if not bias else "pallas_tpu",
        )  # fmt: skip

    shapes = [((4, h, n, d), dtype), ((4, g, m, d), dtype), ((4, g, m, d), dtype)]
    return fn, shapes + ([(bias, "float32")] if bias else []), 4 * h * n * m * d


def fused_case(dtype, h, g, n, d, mask, rich):
    """As `heads_case`."""

    def fn(qkv, *rest):
        names = ("q_scale", "k_scale", "angles")[: len(rest)]
        return fused_attention(
            qkv, heads=h, groups=g, scale=d**-0.5, mask=mask, implementation="auto",
            **dict(zip(names, rest, strict=True)),
        )  # fmt: skip

    rest = [((d,), "float32"), ((d,), "float32"), ((n, d // 2), "float32")] if rich else []
    return fn, [((4, n, (h + 2 * g) * d), dtype), *rest], 4 * h * n * n * d


def compiled(fn, shapes, devices, *, gradients=True):
    """Fn, or it and its gradients, of arrays of which the larger are cut over devices by image."""
    mesh = Mesh(np.asarray(devices), ("data",))
    cut, everywhere = PartitionSpec("data"), PartitionSpec()
    specs = tuple(cut if shape[0] == 4 else everywhere for shape, _ in shapes)

    def own(*xs):
        if not gradients:
            return fn(*xs)
        body = jax.checkpoint(fn)
        value, back = jax.vjp(lambda *ys: body(*ys, *xs[len(first) :]), *xs[: len(first)])
        return value, *back(value)

    first = [s for s in specs if s == cut]
    results = (cut,) * (len(first) + 1) if gradients else cut
    run = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(run).lower(*arguments).compile().as_text()


def main() -> None:
    """Compile all for all."""
    found = {}
    for topology in sys.argv[1:]:
        devices = devices_of(topology)[0][:4]
        cases = {name: heads_case(*case) for name, case in HEADS.items()}
        cases |= {name: fused_case(*case) for name, case in FUSED.items()}
        for name, (fn, shapes, products) in cases.items():
            begin = time.monotonic()
            text = compiled(fn, shapes, devices)
            found[f"{topology} {name}"] = {
                "kernels": text.count('custom_call_target="tpu_custom_call"'),
                "flops": costs(text, len(devices)).flops,
                "products": products / len(devices),
                "seconds": time.monotonic() - begin,
            }
        # Rows of 27 x 128 numbers, which no chip wants in another order.
        fn, shapes, _ = fused_case("bfloat16", 16, 16, 256, 72, Full(), False)
        own = costs(compiled(fn, shapes, devices, gradients=False), len(devices))
        numbers = math.prod(shapes[0][0]) * (1 + 1 / 3)  # in, and a third of it out
        moved = numbers * 2 / len(devices)
        found[f"{topology} traffic"] = {"bytes": own.bytes, "moved": moved}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    assert jnp.zeros(1).device.platform == "cpu"
    main()
