"""TREAD: routed tokens miss their layers exactly, and training costs the share that follows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.tread import TREAD
from jaxgen.testing.networks import live_variables

PAPER = "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training"
ENTRY = "jaxgen.nn.tread.TREAD"
SHAPE = (8, 8, 3)
SIZES: dict[str, Any] = dict(num_classes=4, out_channels=3, depth=4, width=16, heads=2, patch=2)
NET, DENSE = TREAD(**SIZES, routes=((1, 3, 0.5),)), TREAD(**SIZES, routes=((1, 3, 0.0),))
LATENTS = (32, 32, 4)


def moved(net: TREAD, params: Any) -> jax.Array:
    """How far each token after layer 3 moves where layers 2 and 3 have other weights: [B, 16]."""
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    inputs = x, jnp.linspace(0.1, 0.9, 4), jnp.arange(4)
    apply = quick_jit(
        functools.partial(net.apply, train=True, rngs={"dropout": jax.random.key(1)}, taps=(3,))
    )
    kernel = params["blocks"]["contract"]["kernel"].at[1:3].add(0.1)
    blocks = {**params["blocks"], "contract": {**params["blocks"]["contract"], "kernel": kernel}}
    outputs = [apply({"params": p}, *inputs)[1][3] for p in (params, {**params, "blocks": blocks})]
    return jnp.abs(outputs[0] - outputs[1]).max(-1)


def share(net: TREAD, whole: float, first: int, last: int) -> float:
    """What is left of all multiply-adds where half of 256 tokens miss layers first + 1 to last.

    A layer costs its tokens 12 w^2 each for weights and 2 n^2 w for the map.
    """
    w = net.width
    skipped = (last - first) * (128 * 12 * w**2 + 2 * w * (256**2 - 128**2))
    return 1 - skipped / whole


def checks() -> list[Check]:
    """The route on a small network; its cost at the paper's sizes."""
    params = live_variables(NET, SHAPE)["params"]
    results = []
    for net, of in ((NET, "routes"), (DENSE, "a share of 0")):
        distance = jnp.sort(moved(net, params), axis=1)
        # Half of each example's 16 tokens are on the route: to the bit what they were.
        check = below(f"tokens on the route, other weights there, {of}", distance[:, :8].max(), 0.0)
        results.append(check if net is NET else control(check))
        if net is NET:
            missed = (distance[:, 8:] == 0).sum()
            results.append(below("tokens beside it that miss those layers too", missed, 0))
    tread = TREAD(1000, 8, "B/2")
    sampling = multiply_adds(tread, LATENTS)
    training, wanted = multiply_adds(tread, LATENTS, train=True), share(tread, sampling, 2, 8)
    name = "TREAD-B/2's multiply-adds over DiT's"
    results.append(near(f"{name}, training", training / sampling, wanted, 1e-6))
    results.append(control(near(f"{name}, sampling", sampling / sampling, wanted, 1e-6)))
    return results
