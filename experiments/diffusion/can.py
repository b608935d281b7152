"""CAN: a map y = W_c x is fitted by weights that the condition makes, and by no added condition."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.quick import quick_jit
from jaxgen.method import minimise
from jaxgen.nn.can import Generated

PAPER = "Condition-Aware Neural Network for Controlled Image Generation"
ENTRY = "jaxgen.nn.can.CAN"
CONDITIONS, SIZE, STEPS = 4, 6, 200
MAPS = jnp.asarray(np.random.default_rng(0).normal(size=(CONDITIONS, SIZE, SIZE)), jnp.float32)
CODES = jnp.eye(CONDITIONS)


class Added(nn.Module):
    """A dense layer of x with the condition's embedding added: what adaptive shifts can say."""

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B, D], condition [B, C] -> [B, D]."""
        return nn.Dense(SIZE)(x) + nn.Dense(SIZE, use_bias=False, name="told")(condition)


def unexplained(layer: nn.Module) -> jax.Array:
    """The share of y's energy that a trained layer leaves, on inputs that it has not seen."""

    def batch(number: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, other = jax.random.split(jax.random.fold_in(jax.random.key(1), number))
        x = jax.random.normal(key, (64, SIZE))
        label = jax.random.randint(other, (64,), 0, CONDITIONS)
        return x, CODES[label], jnp.einsum("bi,bij->bj", x, MAPS[label])

    def share(params: Any, number: Any) -> jax.Array:
        x, c, y = batch(number)
        out: Any = layer.apply({"params": params}, x, c)
        return jnp.square(out - y).mean() / jnp.square(y).mean()

    start = layer.init(jax.random.key(2), *batch(0)[:2])["params"]
    found, _ = minimise(share, optax.adam(0.05), start, jnp.arange(STEPS))
    return share(found, STEPS)


def checks() -> list[Check]:
    """A layer against a loop, its start, and what it can learn."""
    layer = Generated(SIZE, CONDITIONS, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (12, SIZE))
    fresh = layer.init(jax.random.key(1), x, CODES)["params"]
    static = x @ fresh["kernel"] + fresh["bias"]
    apply = quick_jit(layer.apply)
    check = "a fresh layer against one without condition"
    results = [below(check, jnp.abs(apply({"params": fresh}, x, CODES) - static).max(), 1e-5)]
    live = {**fresh, "generator": MAPS}
    moved = jnp.abs(apply({"params": live}, x, CODES) - static).max()
    results.append(control(below(f"{check}, with generated kernels", moved, 1e-5)))

    check = "share of y = W_c x that is not learnt"
    results.append(below(check, quick_jit(lambda: unexplained(layer))(), 0.01))
    added = quick_jit(lambda: unexplained(Added()))()
    results.append(control(below(f"{check}, by an added condition", added, 0.01)))
    return results
