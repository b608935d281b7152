"""LiT: linear attention is an N x N map that is never made; what it costs; what it inherits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import abstract_variables, multiply_adds
from jaxgen.nn.lit import LiT, linear_attention

PAPER = "LiT: Delving into a Simplified Linear Diffusion Transformer for Image Generation"
ENTRY = "jaxgen.nn.lit.LiT"
SHAPE = (8, 8, 3)
SIZES: dict[str, Any] = dict(num_classes=4, out_channels=3, depth=2, width=16, heads=2, patch=2)
ATTENTION = ("linear_qkv", "linear_proj", "depthwise")


def mapped(q: jax.Array, k: jax.Array, v: jax.Array, softmax: bool) -> jax.Array:
    """Attention by its map [N, N], of products or of their exponentials."""
    scores = q @ k.mT
    scores = jnp.exp(scores) if softmax else scores
    return (scores / scores.sum(-1, keepdims=True)) @ v


def checks() -> list[Check]:
    """Both forms of attention, costs at 256 and 1,024 tokens, and the names that are DiT's."""
    q, k, v = (jax.random.uniform(jax.random.key(n), (2, 2, 64, 8)) for n in range(3))
    found = linear_attention(q, k, v)
    check = "linear attention against its N x N map"
    results = [below(check, jnp.abs(found - mapped(q, k, v, False)).max(), 1e-5)]
    other = jnp.abs(found - mapped(q, k, v, True)).max()
    results.append(control(below(f"{check}, of a softmax", other, 1e-5)))

    # Four times the tokens, four times the work (but for conditioning); a map costs more.
    for net, name in ((LiT(1000, 8, "S/2"), "LiT"), (DiT(1000, 8, "S/2"), "DiT")):
        w = net.width
        fixed = 256 * w + w * w + (net.depth * 6 + 2) * w * w
        small, large = (multiply_adds(net, (side, side, 4)) - fixed for side in (32, 64))
        check = near(f"{name}-S/2's multiply-adds at 4 times the tokens", large / small, 4.0, 1e-6)
        results.append(check if name == "LiT" else control(check))

    ours, theirs = (
        abstract_variables(net, SHAPE)["params"] for net in (LiT(**SIZES), DiT(**SIZES))
    )
    fresh = set(ours["blocks"]) - set(theirs["blocks"])
    results.append(below("layers that a DiT does not give", len(fresh - set(ATTENTION)), 0))
    results.append(near("layers that begin anew", len(fresh), len(ATTENTION), 0))
    return results
