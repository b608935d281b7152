"""What the adversarial experiments share: the method on data drawn afresh as one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial.players import Discriminator, judgement_loss
from jaxgen.method import Method, TrainState, minimise


class Identity(nn.Module):
    """A backbone whose features are the data."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, D] -> [B, D]."""
        return x


def fit(
    method: Method,
    draw: Callable[[jax.Array], Any],
    steps: int,
    seed: int | jax.Array = 0,
    state: TrainState | None = None,
) -> TrainState:
    """The state after updates on batches draw(key), from a first one or the one given."""
    root = jax.random.key(seed)

    def body(state: TrainState, _: None) -> tuple[TrainState, None]:
        data_key, step_key = jax.random.split(jax.random.fold_in(root, state.step))
        return method.update(state, draw(data_key), step_key)[0], None

    return jax.lax.scan(body, state or method.init(root), None, length=steps)[0]


def fit_judge(
    judge: Discriminator,
    rule: Any,
    real: jax.Array,
    fake: jax.Array,
    steps: int,
    tx: Any,
    *,
    project: Callable[[Any], Any] = lambda p: p,
    penalty: Callable[[Any, jax.Array], jax.Array] = lambda p, key: jnp.zeros(()),
) -> Any:
    """Parameters of a discriminator trained on fixed samples, real and fake [B, D] each."""
    x, labels = jnp.concatenate([real, fake]), jnp.zeros(2 * len(real), jnp.int32)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        judged: Any = judge.apply({"params": params}, x, labels)
        return judgement_loss(rule, judged)[0] + penalty(params, key)

    @quick_jit
    def run() -> Any:
        params = project(judge.init(jax.random.key(0), x, labels)["params"])
        keys = jax.random.split(jax.random.key(1), steps)
        return minimise(loss, tx, params, keys, project=project)[0]

    return run()
