"""DiCo: blocks begin as the identity and see a pixel further each; their gates see it all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.dico import DiCo
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.testing.networks import live_variables

PAPER = "DiCo: Revitalizing ConvNets for Scalable and Efficient Diffusion Modeling"
ENTRY = "jaxgen.nn.dico.DiCo"
SHAPE, LATENTS = (11, 11, 2), (32, 32, 4)
NET = DiCo(4, 2, depths=(3,), width=8, mlp_ratio=2.0)
INPUTS = jax.random.normal(jax.random.key(0), (1, *SHAPE)), jnp.full(1, 0.5), jnp.zeros(1, int)

# The authors' training logs.
PARAMETERS = dict(S=33_137_672, XL=701_151_368)


def seen(params: Any) -> jax.Array:
    """How many pixels of x the middle pixel of the last block's output depends on."""

    def middle(x: jax.Array) -> jax.Array:
        tokens = NET.apply({"params": params}, x, *INPUTS[1:], taps=(3,))[1][3]
        return tokens.reshape(*SHAPE[:2], -1)[5, 5].sum()

    return (jnp.abs(quick_jit(jax.grad(middle))(INPUTS[0])).sum((0, 3)) > 0).sum()


def checks() -> list[Check]:
    """The start, what a pixel depends on, the papers' sizes."""
    fresh = quick_jit(NET.init)(jax.random.key(1), *INPUTS)
    live = live_variables(NET, SHAPE)
    apply = quick_jit(lambda params: NET.apply(params, *INPUTS, taps=(1, 3)))
    results = []
    for name, variables in (("fresh", fresh), ("live", live)):
        out, taps = apply(variables)
        found = (
            below(f"output of a {name} network", jnp.abs(out).max(), 0.0),
            below(f"what blocks of a {name} one add", jnp.abs(taps[3] - taps[1]).max(), 0.0),
        )
        results += found if name == "fresh" else map(control, found)

    # A 3x3 convolution before the blocks and one in each: 4 pixels each way, with constant gates.
    params = live["params"]
    blocks = params["stage_0_blocks"]
    gate = {**blocks["gate"], "kernel": jnp.zeros_like(blocks["gate"]["kernel"])}
    local = {**params, "stage_0_blocks": {**blocks, "gate": gate}}
    check = "pixels that a pixel depends on after 3 blocks"
    results.append(near(f"{check}, gates constant", seen(local), 9**2, 0))
    results.append(control(near(f"{check}, gates of channels' means", seen(params), 9**2, 0)))

    for size, wanted in PARAMETERS.items():
        count = parameters(DiCo(1000, 8, size=size), LATENTS)
        results.append(near(f"DiCo-{size}'s parameters", count, wanted, 0))
    narrow = parameters(DiCo(1000, 8, size="S", mlp_ratio=1.0), LATENTS)
    wanted = PARAMETERS["S"]
    results.append(control(near("DiCo-S's parameters, MLPs half as wide", narrow, wanted, 0)))
    # The paper's table says 4.25 G, with what is done to each element.
    cost = multiply_adds(DiCo(1000, 8, size="S", lowering="direct"), LATENTS) / 1e9
    results.append(near("DiCo-S's multiply-adds, G", cost, 4.25, 0.03))
    return results
