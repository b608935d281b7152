"""Laws of a training loss: a mean over examples, whose noise is each example's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.functions import ROUNDING, quick_jit
from jaxgen.testing.naming import law

PyTree = Any
Loss = Callable[[PyTree, dict[str, jax.Array], jax.Array], jax.Array]

SCALAR = "a loss is one finite number"
GRADIENT = "the gradient of a loss is finite"
ORDER = "a loss does not depend on the order of its batch"
MEAN = "a loss is a mean over examples"
KEY = "a loss draws from its key"
LABELS = "a loss sees the labels"


def check_loss(
    loss: Loss,
    params: PyTree,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    random: bool = True,
    labelled: bool = True,
    rtol: float = ROUNDING,
) -> None:
    """A loss's laws; loss(params, batch, key) -> ().

    batch: arrays [B, ...], B even, that are cut and reordered together, and scalars, which are
    not. It is given `index` [B], each example's place, where it has none: noise has to come from
    fold_in(key, index), never from the place among the rows seen. params: live ones, since zeros
    hide much. random, labelled: whether it claims to use its key, and batch["label"].
    """
    size = max(a.shape[0] for a in batch.values() if jnp.ndim(a))
    whole = {"index": jnp.arange(size, dtype=jnp.int32), **batch}
    with law(SCALAR):
        chex.assert_shape(jax.eval_shape(loss, params, whole, key), ())
    run = quick_jit(loss)
    value, grads = quick_jit(jax.value_and_grad(loss))(params, whole, key)

    def rows(of: Any) -> dict[str, jax.Array]:
        return {k: a[of] if jnp.ndim(a) else a for k, a in whole.items()}

    with law(SCALAR):
        chex.assert_tree_all_finite(value)
    with law(GRADIENT):
        chex.assert_tree_all_finite(grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    with law(ORDER):
        reordered = run(params, rows(np.arange(size)[::-1]), key)
        np.testing.assert_allclose(reordered, value, rtol=rtol)
    with law(MEAN):
        halves = [run(params, rows(slice(i, i + size // 2)), key) for i in (0, size // 2)]
        np.testing.assert_allclose(np.mean(halves), value, rtol=rtol)
    if random:
        with law(KEY):
            other = run(params, whole, jax.random.fold_in(key, 1))
            assert other != value, f"{value} with either key"
    if labelled:
        with law(LABELS):
            other = run(params, {**whole, "label": jnp.roll(whole["label"], 1)}, key)
            assert other != value, f"{value} whatever the labels"
