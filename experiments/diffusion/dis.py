"""DiS: states by a recurrence, by a convolution, and in both directions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.nn.dis import SIZES, Block, DiS, selective_scan
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.testing.networks import random_like

PAPER = "Scalable Diffusion Models with State Space Backbone"
ENTRY = "jaxgen.nn.dis.DiS"
BATCH, LENGTH, CHANNELS, STATES = 2, 24, 6, 4

# The paper's table 1, from memory: millions.
PARAMETERS = dict(S=28.4, L=404.0)


def drawn(seed: int, *shape: int) -> jax.Array:
    """Normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def recurrence(x: Any, step: Any, decay: Any, enter: Any, leave: Any) -> jax.Array:
    """The states one after the other."""

    def body(h: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        x, step, enter, leave = inputs
        h = jnp.exp(step[:, None] * decay) * h + (step * x)[:, None] * enter[:, :, None]
        return h, jnp.einsum("bse,bs->be", h, leave)

    along = jax.tree.map(lambda a: a.swapaxes(0, 1), (x, step, enter, leave))
    start = jnp.zeros((BATCH, STATES, CHANNELS))
    return jax.lax.scan(body, start, along)[1].swapaxes(0, 1)


def convolution(x: jax.Array, decay: jax.Array, enter: jax.Array, leave: jax.Array) -> jax.Array:
    """x with the kernel C A^k B, A = exp(decay), of steps of 1."""
    k = jnp.arange(LENGTH)[:, None, None]
    kernel = jnp.einsum("kse,s,s->ke", jnp.exp(k * decay), enter, leave)
    padded = jnp.pad(x, ((0, 0), (LENGTH - 1, 0), (0, 0)))
    return sum(kernel[n] * padded[:, LENGTH - 1 - n : 2 * LENGTH - 1 - n] for n in range(LENGTH))


def both_ways() -> tuple[jax.Array, jax.Array]:
    """How far a block on reversed tokens is from the reversed block: directions swapped, or not."""
    block = Block(8, LENGTH, STATES, 4, 0.0, False, jnp.float32, 1e-6)
    x = drawn(5, LENGTH, 8)
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), x), 0.3)["params"]
    swapped = {**params, "forward": params["backward"], "backward": params["forward"]}
    apply = quick_jit(lambda p, x: block.apply({"params": p}, x))
    wanted = apply(params, x)[::-1]
    return tuple(jnp.abs(apply(p, x[::-1]) - wanted).max() for p in (swapped, params))


def checks() -> list[Check]:
    """Three ways to the same states, both directions, the paper's sizes."""
    x, decay = drawn(0, BATCH, LENGTH, CHANNELS), -jnp.exp(drawn(1, STATES, CHANNELS))
    step = jax.nn.softplus(drawn(2, BATCH, LENGTH, CHANNELS))
    enter, leave = drawn(3, BATCH, LENGTH, STATES), drawn(4, BATCH, LENGTH, STATES)
    scan = quick_jit(selective_scan)
    check, wanted = "states against the recurrence", recurrence(x, step, decay, enter, leave)
    results = [below(check, jnp.abs(scan(x, step, decay, enter, leave) - wanted).max(), 1e-5)]
    mean = jnp.broadcast_to(step.mean(1, keepdims=True), step.shape)
    still = jnp.abs(scan(x, mean, decay, enter, leave) - wanted).max()
    results.append(control(below(f"{check}, steps that select nothing", still, 1e-5)))

    check = "states against the convolution with C A^k B"
    same = (jnp.broadcast_to(a[:1, :1], a.shape) for a in (enter, leave))
    constant = scan(x, jnp.ones_like(x), decay, *same)
    convolved = convolution(x, decay, enter[0, 0], leave[0, 0])
    results.append(below(check, jnp.abs(constant - convolved).max(), 1e-5))
    selected = jnp.abs(scan(x, jnp.ones_like(x), decay, enter, leave) - convolved).max()
    results.append(control(below(f"{check}, B and C of each token", selected, 1e-5)))

    swapped, kept = both_ways()
    check = "a block read backwards, the directions"
    results.append(below(f"{check} swapped", swapped, 1e-5))
    results.append(control(below(f"{check} as they are", kept, 1e-5)))

    for size, wanted in PARAMETERS.items():
        count = parameters(DiS(1000, 8, f"{size}/2"), (32, 32, 4)) - 1001 * SIZES[size]["width"]
        name = f"DiS-{size}/2's parameters without labels, millions"
        results.append(near(name, count / 1e6, wanted, 0.005 * wanted))
    for net, name in ((DiS(1000, 8, "S/2"), "DiS"), (DiT(1000, 8, "S/2"), "DiT")):
        few, some, many = (multiply_adds(net, (side, side, 4)) for side in (2, 32, 64))
        ratio = (many - some) / 768 / ((some - few) / 255)
        check = near(f"a {name}'s cost of one more token, at 1024 and at 256", ratio, 1.0, 1e-6)
        results.append(check if name == "DiS" else control(check))
    return results
