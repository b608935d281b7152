"""What the experiments on causal networks share: random weights, Jacobians, all binary images."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.quick import quick_jit
from jaxgen.families.autoregressive import autoregressive
from jaxgen.method import Method, Spec
from jaxgen.training.ema import Averages


def method(spec: Spec, module: Any, **options: Any) -> Method:
    """The family's Method around a network; trained by Adam where it is trained."""
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 300), b2=0.95)
    return autoregressive(spec, module, optimizer, Averages((1000,)), **options)


def random_weights(init: Any, scale: float) -> Any:
    """Normal weights in the shapes that init() has."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


def binary_images(shape: tuple[int, ...]) -> jax.Array:
    """All 512 images of nine elements, -1 or 1: [512, *shape]."""
    every = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=9)), jnp.float32)
    return every.reshape(-1, *shape)


def total(built: Method, params: Any) -> float:
    """The probabilities of all binary images, summed."""
    assert built.log_prob is not None
    x, labels = binary_images(built.spec.shape), jnp.zeros(512, jnp.int32)
    return float(jnp.exp(quick_jit(built.log_prob())(params, x, labels, None)).sum())


def reach(module: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Largest derivatives of each output row by each token: (the earlier ones, the others)."""
    size = int(np.prod(module.shape))
    at = jnp.asarray(np.random.default_rng(1).integers(0, module.levels, size), jnp.float32)

    def out(values: jax.Array) -> jax.Array:
        return module.apply({"params": params}, values[None], jnp.zeros(1, jnp.int32))[0]

    slopes = np.abs(np.asarray(quick_jit(jax.jacrev(out))(at))).max(1)
    before = np.arange(size) < module.group * np.arange(slopes.shape[0])[:, None]
    return slopes[before], slopes[~before]
