"""DiffiT: without its time weights attention is plain, with them its maps follow the time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.diffit import DiffiT
from jaxgen.nn.flops import parameters
from jaxgen.testing.networks import live_variables

PAPER = "DiffiT: Diffusion Vision Transformers for Image Generation"
ENTRY = "jaxgen.nn.diffit.DiffiT"
SHAPE = (8, 8, 3)
NET = DiffiT(4, 3, depth=1, width=16, heads=2, patch=2)
TIMED, PLAIN = "with time weights", "without time weights"


def of_time(params: Any) -> dict[str, jax.Array]:
    """The largest change of the output between two times, with these time weights or fewer."""
    blocks = params["blocks"]
    plain = jax.tree.map(jnp.zeros_like, blocks["time_qkv"])
    # Queries and keys alone: a head's columns are its query, its key and its value.
    only = jnp.arange(48) % 24 < 16
    maps = jax.tree.map(lambda a: jnp.where(only, a, 0), blocks["time_qkv"])
    x = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    apply = quick_jit(lambda p, t: NET.apply({"params": p}, x, t, jnp.zeros(1, jnp.int32)))
    found = {}
    for name, weights in ((TIMED, blocks["time_qkv"]), (PLAIN, plain), ("maps", maps)):
        given = {**params, "blocks": {**blocks, "time_qkv": weights}}
        out = [apply(given, jnp.full(1, t)) for t in (0.1, 0.9)]
        found[name] = jnp.abs(out[0] - out[1]).max()
    return found


def checks() -> list[Check]:
    """What depends on the time, and the paper's size."""
    found = of_time(live_variables(NET, SHAPE)["params"])
    check = "change of the output with the time"
    results = [
        below(f"{check}, {PLAIN}", found[PLAIN], 0.0),
        control(below(f"{check}, {TIMED}", found[TIMED], 0.0)),
        above(f"{check}, by queries and keys alone", found["maps"], 1e-3),
        control(above(f"{check}, by neither", found[PLAIN], 1e-3)),
    ]
    count = parameters(DiffiT(1000, 8), (32, 32, 4)) / 1e6
    results.append(near("latent DiffiT's parameters, millions", count, 561, 0.5))
    return results
