"""Rewriting: one layer of a trained generator told another value for a few keys, by a small change.

Bau et al., "Rewriting a Deep Generative Model" (2020). A layer W is an associative memory of keys k
(what it is given at a place) and values W k. Of all W that map k* to v*, that which least changes
the values of other keys, E |(W - W0) k|^2, is W0 + Lambda (C^-1 k*)^T, with C = E[k k^T] and
Lambda = (v* - W0 k*) / (k*^T C^-1 k*) (section 3.2). For several keys, and through what is not
linear, Lambda is found by descent in the span of C^-1 k* (`directions`, `fitted`).

Kernels are [..., in, out], a convolution's too, whose keys are patches [..., in], flattened; keys
and values are rows, and a layer's bias is no part of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import minimise

PyTree = Any


def inputs_of(run: Callable[[], Any], name: str) -> jax.Array:
    """What the Flax layer of a dotted name is given while run() applies the network: its keys.

    Of layers outside of `nn.scan`. Raises UsageError where run() calls no such layer.
    """
    found: dict[str, jax.Array] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and args:
            found[".".join(context.module.path)] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        run()
    if name not in found:
        raise invalid("tune.rewriting", name, f"a layer among {', '.join(filter(None, found))}")
    return found[name]


def second_moment(keys: jax.Array) -> jax.Array:
    """C = E[k k^T], [D, D], of keys [N, ..., D]."""
    flat = keys.reshape(-1, keys.shape[-1])
    return flat.T @ flat / len(flat)


def rewritten(kernel: jax.Array, moment: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The kernel that maps key [D] to value [out], and other keys as nearly as before as can be.

    moment: of the keys of the data, [D, D], of full rank.
    """
    flat = kernel.reshape(-1, kernel.shape[-1])
    direction = jnp.linalg.solve(moment, key)
    change = (value - key @ flat) / (key @ direction)
    return (flat + jnp.outer(direction, change)).reshape(kernel.shape)


def directions(moment: jax.Array, keys: jax.Array, rank: int) -> jax.Array:
    """An orthonormal basis [D, rank] of the strongest directions among C^-1 k of keys [N, D]."""
    many = jnp.linalg.solve(moment, keys.T)
    if not 1 <= rank <= min(many.shape):
        raise invalid("tune.rewriting.rank", rank, f"1 to {min(many.shape)}")
    return jnp.linalg.svd(many, full_matrices=False)[0][:, :rank]


def fitted(
    error: Callable[[jax.Array], jax.Array],
    kernel: jax.Array,
    basis: jax.Array,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> jax.Array:
    """The kernel W0 + basis Lambda after steps on error(kernel) -> scalar, Lambda 0 at first.

    basis: `directions`, [D, S]; all keys to which they are orthogonal keep their values.
    """
    changed = lambda change: kernel + (basis @ change).reshape(kernel.shape)
    start = jnp.zeros((basis.shape[1], kernel.shape[-1]), kernel.dtype)
    loss = lambda change, _: error(changed(change))
    return changed(minimise(loss, optimizer, start, jnp.arange(steps))[0])
