"""DiMR: a norm between two norms, of 4 C + 2 parameters, which tells a network the time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.dimr import DiMR, TimeNorm
from jaxgen.nn.layers import normalise
from jaxgen.testing.networks import live_variables

PAPER = "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models"
ENTRY = "jaxgen.nn.dimr.DiMR"
WIDTH, SHAPE = 6, (8, 8, 2)
NET = DiMR(4, 2, depths=(1, 1), widths=(8, 4), heads=2, kernel=3)


def drawn(seed: int, *shape: int) -> jax.Array:
    """Normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def moved(params: Any, silent: bool = False) -> jax.Array:
    """How far the output moves with the time; silent: norms whose gate does not see it."""
    if silent:
        params = {
            name: {**value, **{k: still(v) for k, v in value.items() if "norm" in k}}
            if name.endswith("blocks")
            else still(value)
            if name == "norm"
            else value
            for name, value in params.items()
        }
    x = drawn(5, 1, *SHAPE)
    apply = quick_jit(lambda t: NET.apply({"params": params}, x, t, jnp.zeros(1, jnp.int32)))
    return jnp.abs(apply(jnp.full(1, 0.1)) - apply(jnp.full(1, 0.9))).max()


def still(norm: Any) -> Any:
    """A norm's parameters with a gate that is the same at all times."""
    return {**norm, "weight": jnp.zeros_like(norm["weight"])}


def checks() -> list[Check]:
    """The norm's laws, and what tells the network the time."""
    layer, x, times = TimeNorm(), drawn(0, 5, 7, WIDTH), jnp.linspace(0, 1, 5)
    apply = quick_jit(lambda p: layer.apply({"params": p}, x, times))
    scales, shifts = drawn(1, 2, WIDTH), drawn(2, 2, WIDTH)
    gate = dict(weight=jnp.float32(3.0), bias=jnp.float32(-1.0))

    def plain(n: int) -> jax.Array:
        return normalise(x) * scales[n] + shifts[n]

    results = []
    twice = dict(scales=scales[jnp.zeros(2, int)], shifts=shifts[jnp.zeros(2, int)])
    check = "against LayerNorm, at all times"
    same = jnp.abs(apply({**twice, **gate}) - plain(0)).max()
    results.append(below(f"{check}, p_1 = p_2", same, 1e-5))
    two = dict(scales=scales, shifts=shifts)
    results.append(control(below(check, jnp.abs(apply({**two, **gate}) - plain(0)).max(), 1e-5)))
    for n, bias in enumerate((40.0, -40.0)):
        shut = {**two, "weight": jnp.float32(0), "bias": jnp.float32(bias)}
        off = [jnp.abs(apply(shut) - plain(k)).max() for k in (n, 1 - n)]
        results.append(below(f"{check}, a gate shut to p_{n + 1}", off[0], 1e-5))
        results.append(control(below(f"{check}, to the other", off[1], 1e-5)))
    fresh = jax.eval_shape(layer.init, jax.random.key(0), x, times)["params"]
    count = sum(a.size for a in jax.tree.leaves(fresh))
    results.append(near("parameters of a norm", count, 4 * WIDTH + 2, 0))
    results.append(control(near("those of LayerNorm", 2 * WIDTH, 4 * WIDTH + 2, 0)))

    params = live_variables(NET, SHAPE)["params"]
    check = "change of the output with the time"
    results.append(above(check, moved(params), 1e-3))
    results.append(control(above(f"{check}, gates that do not see it", moved(params, True), 1e-3)))
    return results
