"""Rows times their groups' kernels: a loop, and all derivatives, batched or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn.flops import count
from jaxgen.ops.grouped import grouped_matmul

ROWS = jax.random.normal(jax.random.key(0), (2, 7, 3))
KERNELS = jax.random.normal(jax.random.key(1), (3, 3, 4))
SIZES = jnp.array([[2, 0, 4], [1, 5, 1]], jnp.int32)


def plain(rows, kernels, sizes):
    """The same by one product with every kernel."""
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
    every = jnp.einsum("rd,edf->erf", rows, kernels)
    return sum(jnp.where((group == e)[:, None], every[e], 0) for e in range(len(kernels)))


def scalar(fn):
    return lambda rows, kernels, sizes: jnp.sin(fn(rows, kernels, sizes)).sum()


def along(fn):
    """Its change along fixed directions."""
    directions = jnp.cos(ROWS[0]), jnp.sin(KERNELS)
    return lambda rows, kernels, sizes: jax.jvp(
        lambda *xs: fn(*xs, sizes), (rows, kernels), directions
    )[1]


FORMS = {
    "value": lambda fn: fn,
    "jvp of grad": lambda fn: along(jax.grad(scalar(fn), argnums=(0, 1))),
    "grad of grad": lambda fn: jax.grad(
        scalar(lambda *xs: jax.grad(scalar(fn), argnums=0)(*xs)), argnums=(0, 1)
    ),
}


@pytest.mark.parametrize("axes", [None, (0, None, 0), (None, None, 0)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_derivative_is_that_of_the_plain_product(form, axes):
    both = [FORMS[form](fn) for fn in (grouped_matmul, plain)]
    given = [ROWS[0], KERNELS, SIZES[0]]
    if axes:
        both = [jax.vmap(fn, in_axes=axes) for fn in both]
        given = [a if n is None else b for a, b, n in zip(given, (ROWS, KERNELS, SIZES), axes,
                                                          strict=True)]  # fmt: skip
    found, want = (jax.jit(fn)(*given) for fn in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want)


def test_a_row_costs_one_group_forward_and_backward():
    def of(fn):
        return count(jax.make_jaxpr(fn)(ROWS[0], KERNELS, SIZES[0]).jaxpr)

    assert of(grouped_matmul) == 7 * 3 * 4
    assert of(jax.grad(scalar(grouped_matmul), argnums=(0, 1))) == 3 * 7 * 3 * 4
