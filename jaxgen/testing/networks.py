"""Laws of a denoising network: what goes in matters, and each image is computed by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.functions import ROUNDING, quick_jit
from jaxgen.testing.naming import law

PyTree = Any
Apply = Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array]

SHAPE = "a network's output has its shape, in float32"
FINITE = "a network is finite at both ends"
LABELS = "every label is one of its own, the null label too"
NOISE = "a network sees the noise level"
ALONE = "a network keeps the images of a batch apart"
GRADIENT = "every parameter has a finite gradient"

SEEN = 1e-4
"""What counts as a difference: a hundred times float32's rounding of outputs of size 1."""


def random_like(tree: PyTree, scale: float = 0.2) -> PyTree:
    """Normal arrays with the shapes and dtypes of a tree's, from NumPy: nothing is compiled."""
    chance = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(scale * chance.normal(size=a.shape), a.dtype), tree)


def live_variables(module: Any, shape: tuple[int, ...], scale: float = 0.2) -> PyTree:
    """Random variables of a Flax module(x, noise, labels): no branch starts at zero.

    shape: one example's.
    """
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    noise, label = (jax.ShapeDtypeStruct((1,), d) for d in (jnp.float32, jnp.int32))
    return random_like(jax.eval_shape(module.init, jax.random.key(0), image, noise, label), scale)


def check_network(
    apply: Apply,
    variables: PyTree,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    out_channels: int | None = None,
    rtol: float = ROUNDING,
) -> None:
    """A network's laws; apply(variables, x[B, *shape], noise[B], labels[B]) -> [B, ..., channels].

    shape: one example's. Labels are 0 to num_classes, the last of which is "no label". variables:
    live ones (`live_variables`): a network whose last layer is zero sees nothing. out_channels: by
    default shape's. rtol: between batches in another order, of the largest output.
    """
    count = num_classes + 1
    x = jax.random.normal(jax.random.key(0), (count, *shape))
    noise = jnp.linspace(0.05, 0.95, count)
    labels = jnp.arange(count, dtype=jnp.int32)
    run = quick_jit(apply)
    out = run(variables, x, noise, labels)
    with law(SHAPE):
        chex.assert_shape(out, (count, *shape[:-1], out_channels or shape[-1]))
        chex.assert_type(out, jnp.float32)
    with law(FINITE):
        for end in (0.0, 1.0):
            chex.assert_tree_all_finite(run(variables, x, jnp.full(count, end), labels))
    with law(LABELS):
        gaps = _gaps(run(variables, jnp.broadcast_to(x[0], x.shape), jnp.full(count, 0.5), labels))
        first, second = np.unravel_index(gaps.argmin(), gaps.shape)
        assert gaps.min() > SEEN, f"labels {first} and {second} give the same output"
    with law(NOISE):
        same = jnp.broadcast_to(x[0], x.shape)
        noise_gaps = _gaps(run(variables, same, jnp.linspace(0, 1, count), jnp.zeros_like(labels)))
        assert noise_gaps.min() > SEEN, "two noise levels give the same output"
    check_alone(run, variables, x, noise, labels, rtol=rtol)

    def loss(variables: PyTree) -> jax.Array:
        return jnp.square(apply(variables, x, noise, labels) - x.mean()).mean()

    with law(GRADIENT):
        for path, grad in jax.tree_util.tree_leaves_with_path(quick_jit(jax.grad(loss))(variables)):
            name = jax.tree_util.keystr(path)
            assert jnp.isfinite(grad).all(), f"that of {name} is not finite"
            assert jnp.abs(grad).max() > 0, f"that of {name} is zero"


@law(ALONE)
def check_alone(
    apply: Apply,
    variables: PyTree,
    x: jax.Array,
    noise: jax.Array,
    labels: jax.Array,
    *,
    rtol: float = ROUNDING,
) -> None:
    """An output depends on its own row of x, noise and labels alone, not on where it stands."""
    out = np.asarray(apply(variables, x, noise, labels))
    bound = rtol * np.abs(out).max()
    order = np.random.default_rng(0).permutation(len(out))
    moved = apply(variables, x[order], noise[order], labels[order])
    np.testing.assert_allclose(moved, out[order], rtol=0, atol=bound, err_msg="in another order")
    others = [a.at[1:].set(a[:-1]) for a in (x, noise, labels)]
    first = apply(variables, *others)[0]
    np.testing.assert_allclose(first, out[0], rtol=0, atol=bound, err_msg="with other neighbours")


def _gaps(out: jax.Array) -> np.ndarray:
    """The largest difference of each pair of outputs [B, B]; infinite on the diagonal."""
    flat = np.asarray(out).reshape(len(out), -1)
    gaps = np.abs(flat[:, None] - flat[None]).max(-1)
    np.fill_diagonal(gaps, np.inf)
    return gaps
