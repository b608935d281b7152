"""What both flow experiments measure: the inverse and the determinant of a shaken network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.quick import quick_jit

SHAPE = (4, 4, 1)


def shaken(model: Any) -> tuple[Any, jax.Array, jax.Array]:
    """(params away from the identity, x [3, 4, 4, 1], labels [3])."""
    x = jax.random.normal(jax.random.key(2), (3, *SHAPE))
    labels = jnp.array([0, 1, 2])
    return moved(model, x, labels), x, labels


def moved(model: Any, x: jax.Array, labels: jax.Array) -> Any:
    """Parameters with 0.15 of noise on all of them."""

    @quick_jit
    def make(x: jax.Array, labels: jax.Array) -> Any:
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(0), x, labels)["params"])
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noise = [0.15 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
        return tree.unflatten([a + b for a, b in zip(leaves, noise, strict=True)])

    return make(x, labels)


def errors(model: Any) -> tuple[float, float, float]:
    """Largest |inverse(forward(x)) - x|, |log-determinant - slogdet|, and |slogdet| itself."""
    params, x, labels = shaken(model)
    z, log_det = jax.jit(model.apply)({"params": params}, x, labels)
    back = jax.jit(lambda p, z: model.inverse(p, z, labels))(params, z)

    def forward(x: jax.Array, label: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x.reshape(1, *SHAPE), label[None])[0][0]

    jacobians = jax.jit(jax.vmap(jax.jacfwd(forward)))(x.reshape(3, -1), labels)
    known = np.linalg.slogdet(np.asarray(jacobians, np.float64))[1]
    return (
        float(np.abs(back - x).max()),
        float(np.abs(log_det - known).max()),
        float(np.abs(known).min()),
    )
