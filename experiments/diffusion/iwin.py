"""Iwin: one block of distant windows and a convolution links every patch to every other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.iwin import Iwin, interleaved, together
from jaxgen.testing.networks import live_variables

PAPER = "Iwin Transformer: Hierarchical Vision Transformer using Interleaved Windows"
ENTRY = "jaxgen.nn.iwin.Iwin"
SHAPE, GRID = (8, 8, 1), (8, 8)
SIZES: dict[str, Any] = dict(num_classes=4, out_channels=1, depth=1, width=8, heads=1, patch=1)


def linked(kernel: int, silent: bool = False) -> jax.Array:
    """The share of pairs of patches of which one block's output knows the other's input.

    Windows of 4 x 4, 2 apart. silent: the convolution is 0.
    """
    net = Iwin(**SIZES, window=4, kernel=kernel)
    params = live_variables(net, SHAPE)["params"]
    if silent:
        still = jax.tree.map(jnp.zeros_like, params["blocks"]["depthwise"])
        params = {**params, "blocks": {**params["blocks"], "depthwise": still}}

    def tokens(x: jax.Array) -> jax.Array:
        inputs = x, jnp.full(1, 0.5), jnp.zeros(1, jnp.int32)
        out: Any = net.apply({"params": params}, *inputs, taps=(1,))
        return out[1][1][0].sum(-1)

    x = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    return (jnp.abs(quick_jit(jax.jacobian(tokens))(x)) > 0).mean()


def checks() -> list[Check]:
    """Windows and back, links of one block, its cost."""
    h = jax.random.normal(jax.random.key(1), (2, 64, 3))
    back = jnp.abs(together(interleaved(h, GRID, 4), GRID, 4) - h).max()
    results = [below("interleaved and put together again, off by", back, 0.0)]
    apart = jnp.abs(interleaved(h, GRID, 4).reshape(h.shape) - h).max()
    results.append(control(below("interleaved alone, off by", apart, 0.0)))

    check = "share of pairs that one block links"
    results.append(near(check, linked(3), 1.0, 0.0))
    results.append(control(near(f"{check}, without the convolution", linked(3, True), 1.0, 0.0)))
    # A window is a quarter of all patches.
    results.append(near(f"{check}, without it", linked(3, True), 0.25, 0.0))

    # Attention of 64 patches costs 2 x 64 x 8 each, of 16 a quarter of that.
    costs = [multiply_adds(net, SHAPE) for net in (DiT(**SIZES), Iwin(**SIZES, window=4))]
    saved = 64 * 2 * (64 - 16) * 8
    results.append(near("multiply-adds saved by windows", costs[0] - costs[1], saved, 0.0))
    whole = multiply_adds(Iwin(**SIZES, window=8), SHAPE)
    check = "multiply-adds saved, one window"
    results.append(control(near(check, costs[0] - whole, saved, 0.0)))
    return results
