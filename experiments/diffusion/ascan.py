"""AsCAN: convolutions see their surroundings, one transformer block at the end sees everything."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.ascan import AsCAN, runs
from jaxgen.nn.flops import multiply_adds
from jaxgen.testing.networks import live_variables

PAPER = "AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation"
ENTRY = "jaxgen.nn.ascan.AsCAN"
SHAPE, WIDTH, RATIO = (24, 24, 1), 8, 2.0
SIZES: dict[str, Any] = dict(width=WIDTH, mlp_ratio=RATIO, head_channels=4)


def reach(*stages: str) -> jax.Array:
    """How much the first pixel of the output moves with the last one of x."""
    net = AsCAN(4, 1, **SIZES, stages=stages)
    variables = live_variables(net, SHAPE)

    def corner(x: jax.Array) -> jax.Array:
        out: Any = net.apply(variables, x, jnp.full(1, 0.5), jnp.zeros(1, jnp.int32))
        return out[0, 0, 0, 0]

    slope = quick_jit(jax.grad(corner))(jax.random.normal(jax.random.key(0), (1, *SHAPE)))
    return jnp.abs(slope[0, -1, -1, 0])


def dearer(first: str, second: str) -> float:
    """How many multiply-adds the second string's network has more, as the only stage."""
    cost = (multiply_adds(AsCAN(4, 1, **SIZES, stages=(s,)), SHAPE) for s in (first, second))
    return -float(next(cost)) + float(next(cost))


def checks() -> list[Check]:
    """What a pixel can know, what strings mean, and what they cost."""
    results = []
    check = "slope from corner to corner"
    results.append(below(f"{check}, all convolutions", reach("C", "C", "C"), 0.0))
    results.append(control(below(f"{check}, one T at the end", reach("C", "C", "CT"), 0.0)))

    counts = [dict(runs(stage)).get("T", 0) for stage in ("CCC", "CCT", "CTT")]
    results.append(near("transformer blocks in CCC, CCT and CTT", sum(counts), 3, 0))
    pixels, w = SHAPE[0] * SHAPE[1], WIDTH
    convolution = pixels * (9 + 1) * RATIO * w**2 + 3 * w**2
    transformer = pixels * (4 * w**2 + 2 * pixels * w + 2 * RATIO * w**2) + 6 * w**2
    check = "multiply-adds of a T in the place of a C, over what the formulas say"
    share = dearer("CC", "CT") / (transformer - convolution)
    results.append(near(check, share, 1.0, 1e-6))
    none = dearer("CC", "CC") / (transformer - convolution)
    results.append(control(near(f"{check}, nothing in its place", none, 1.0, 1e-6)))
    return results
