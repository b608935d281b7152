"""DiT-MoE: one expert is a dense MLP, dispatch is a loop over tokens, balance has its minimum."""

from __future__ import annotations

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion.terms.balance import balance
from jaxgen.method import minimise
from jaxgen.nn.dit import DiT
from jaxgen.nn.dit_moe import ROUTING, DiTMoE
from jaxgen.nn.experts import Experts
from jaxgen.nn.flops import parameters
from jaxgen.testing.networks import live_variables, random_like

PAPER = "Scaling Diffusion Transformers to 16 Billion Parameters"
ENTRY = "jaxgen.nn.dit_moe.DiTMoE"
SHAPE, EXPERTS, CHOSEN = (8, 8, 3), 8, 2
SIZES: dict[str, Any] = dict(num_classes=4, out_channels=3, depth=2, width=16, heads=2, patch=2)


def as_dense() -> jax.Array:
    """How far a DiT is from one expert that is its MLP, relative to its largest output."""
    dense = DiT(**SIZES)
    net = DiTMoE(**SIZES, experts=1, chosen=1, shared=0, swiglu=False)
    params = live_variables(dense, SHAPE)["params"]
    blocks, rng = dict(params["blocks"]), np.random.default_rng(0)
    mlps = {name: blocks.pop(name) for name in ("expand", "contract")}
    blocks["experts"] = jax.tree.map(lambda a: a[:, None], mlps)
    blocks["router"] = {"weight": jnp.asarray(rng.normal(size=(2, 16, 1)), jnp.float32)}
    x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    inputs = x, jnp.linspace(0.1, 0.9, 3), jnp.arange(3)
    want = quick_jit(dense.apply)({"params": params}, *inputs)
    found = quick_jit(net.apply)({"params": {**params, "blocks": blocks}}, *inputs)
    return jnp.abs(found - want).max() / jnp.abs(want).max()


def by_hand(params: Any, x: jax.Array, expert: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted sum of gated MLPs, token by token, choice by choice."""
    gate, value, out = (params["params"][n]["kernel"] for n in ("gate", "value", "contract"))
    rows = []
    for row, chosen, weights in zip(x, np.asarray(expert), weight, strict=True):
        parts = [(nn.silu(row @ gate[e]) * (row @ value[e])) @ out[e] for e in chosen]
        rows.append(sum(w * part for w, part in zip(weights, parts, strict=True)))
    return jnp.stack(rows)


def penalty(chosen: jax.Array, p: jax.Array) -> jax.Array:
    """The term, weight 1, of images of one layer whose choices and probabilities are [B, E]."""
    routing = jnp.stack([chosen, p], axis=1)[:, None]
    seen: Any = types.SimpleNamespace(taps={ROUTING: routing})
    return balance(weight=1.0).of(seen, None, None).mean()


def routed(weight: jax.Array, x: jax.Array) -> jax.Array:
    """The penalty of a router [D, E] on tokens x [T, D]."""
    p = nn.softmax(x @ weight)
    chosen = jax.nn.one_hot(jax.lax.top_k(p, CHOSEN)[1], EXPERTS).mean(1)
    return penalty(chosen, p)


def checks() -> list[Check]:
    """Dispatch and balance, exactly; a collapsed router that the term spreads again."""
    results = [below("one expert against a DiT's MLP", as_dense(), 1e-5)]

    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    expert = jnp.asarray([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(12)])
    weight = jnp.asarray(rng.random((12, CHOSEN)), jnp.float32)
    experts = Experts(EXPERTS, 10, True, jnp.float32)
    params = random_like(jax.eval_shape(experts.init, jax.random.key(0), x, expert, weight), 0.5)
    out: Any = jax.jit(experts.apply)(params, x, expert, weight)
    check = "dispatch against a loop over tokens"
    gap = jnp.abs(out - by_hand(params, x, expert, weight)).max()
    results.append(below(check, gap, 1e-5))
    other = by_hand(params, x, (expert + 1) % EXPERTS, weight)
    results.append(control(below(f"{check}, to the next expert", jnp.abs(out - other).max(), 1e-5)))

    even, two = jnp.full((4, EXPERTS), 1 / EXPERTS), jnp.zeros((4, EXPERTS)).at[:, :2].set(0.5)
    results.append(near("penalty of even routing", penalty(even, even), 1.0, 1e-6))
    check = "penalty of two experts for all"
    results.append(near(check, penalty(two, two), EXPERTS / CHOSEN, 1e-6))

    # All tokens have a common part, by which this router sends all of them to the same experts.
    tokens = jnp.asarray(rng.normal(size=(512, 16)), jnp.float32).at[:, 0].set(2.0)
    collapsed = jnp.asarray(0.3 * rng.normal(size=(16, EXPERTS)), jnp.float32)
    collapsed = collapsed.at[0].set(jnp.asarray([3.0, 3.0, *[0.0] * 6]))
    found, _ = minimise(
        lambda w, _: routed(w, tokens), optax.adam(0.05), collapsed, jnp.arange(300)
    )
    results.append(below("penalty of a router after 300 steps", routed(found, tokens), 1.05))
    start = routed(collapsed, tokens)
    results.append(control(below("penalty of that router before", start, 1.05)))

    count = parameters(DiTMoE(1000, 8, "G/2"), (32, 32, 4)) / 1e9
    results.append(near("DiT-MoE-G/2 parameters, 1e9", count, 16.5, 0.051))
    count = parameters(DiTMoE(1000, 8, "G/2", shared=0), (32, 32, 4)) / 1e9
    results.append(control(near("the same without shared experts", count, 16.5, 0.051)))
    return results
