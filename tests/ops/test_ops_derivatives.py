"""An operation of known mathematics whose kernels leave marks: which derivative used what."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxgen.ops.derivatives import apply


def undifferentiable(fn):
    """As a kernel is: differentiating it is an error."""
    wrapped = jax.custom_jvp(fn)

    @wrapped.defjvp
    def _(primals, tangents):
        raise AssertionError("a kernel was differentiated")

    return wrapped


@dataclasses.dataclass(frozen=True)
class Product:
    """sin(x) y z^n; forward and backward say so by name in the program."""

    power: int

    def forward(self, xs, aux):
        def kernel(x, y, z):
            return self.formula((x, y), (z,)) + 0 * jax.lax.erfc(x), jnp.cos(x)

        out, cos = undifferentiable(kernel)(*xs, *aux)
        return out, (cos,)

    def backward(self, xs, aux, kept, g, needed):
        (x, y), (z,), (cos,) = xs, aux, kept

        def kernel(x, y, z, cos, g):
            power = z.astype(x.dtype) ** self.power
            mark = 0 * jax.lax.lgamma(jnp.abs(x) + 1)
            return g * cos * y * power + mark, g * jnp.sin(x) * power

        return undifferentiable(kernel)(x, y, z, cos, g)

    def formula(self, xs, aux):
        x, y = xs
        return jnp.sin(x) * y * aux[0].astype(x.dtype) ** self.power


X, Y, Z = jnp.array([0.3, 0.5, -0.7]), jnp.array([1.1, -0.4, 0.9]), jnp.array([2, 1, 3])
plain = lambda x, y: jnp.sin(x) * y * Z**2.0
kernel = lambda x, y: apply(Product(2), (x, y), (Z,))


def through(fn):
    """Ways to differentiate a function of x and y."""
    total = lambda x, y: fn(x, y).sum()
    push = lambda x, y: jax.jvp(fn, (x, y), (jnp.cos(y), x * x))[1]
    layers = lambda x, y: jax.lax.scan(
        lambda c, _: (jax.checkpoint(fn)(c, y), None), x, None, length=3
    )[0]
    many = jax.vmap(jax.vmap(fn, (0, None)), (None, 0))
    grid = lambda x, y: many(jnp.stack([x, 2 * x]), jnp.stack([y, y + 1, y - 1]))
    shard = jax.shard_map(
        fn,
        mesh=Mesh(np.asarray(jax.devices()[:1]), ("own",)),
        in_specs=PartitionSpec("own"),
        out_specs=PartitionSpec("own"),
        check_vma=False,
    )
    return {
        "value": fn,
        "grad": jax.grad(total, (0, 1)),
        "grad of one": jax.grad(total, 1),
        "jvp": push,
        "jvp of grad": lambda x, y: jax.jvp(jax.grad(total, (0, 1)), (x, y), (y, x)),
        "grad of jvp": jax.grad(lambda x, y: push(x, y).sum(), (0, 1)),
        "grad of grad": jax.grad(lambda x, y: (jax.grad(total)(x, y) * y).sum(), (0, 1)),
        "jvp of jvp": lambda x, y: jax.jvp(push, (x, y), (y, x)),
        "hessian": jax.hessian(total, (0, 1)),
        "grad of scan of checkpoint": jax.grad(lambda x, y: layers(x, y).sum(), (0, 1)),
        "jvp of grad of scan": lambda x, y: jax.jvp(
            jax.grad(lambda x, y: layers(x, y).sum()), (x, y), (y, x)
        ),
        "grad of vmap": jax.grad(lambda x, y: jnp.sin(grid(x, y)).sum(), (0, 1)),
        "vmap of grad": lambda x, y: jax.vmap(jax.grad(total), (0, None))(
            jnp.stack([x, y]), y
        ),
        "jvp of grad of vmap": lambda x, y: jax.jvp(
            jax.grad(lambda x, y: jnp.sin(grid(x, y)).sum(), (0, 1)), (x, y), (y, x)
        ),
        "grad of shard_map": jax.grad(lambda x, y: shard(x, y).sum(), (0, 1)),
        "jvp of grad of shard_map": lambda x, y: jax.jvp(
            jax.grad(lambda x, y: shard(x, y).sum()), (x, y), (y, x)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("way", through(plain))
def test_every_derivative_is_the_formulas(way):
    want = through(plain)[way](X, Y)
    for fn in (through(kernel)[way], jax.jit(through(kernel)[way])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), fn(X, Y), want
        )


def test_values_and_gradients_use_the_kernels_and_the_rest_does_not():
    text = lambda way: str(jax.make_jaxpr(through(kernel)[way])(X, Y))
    for way in ("value", "grad", "jvp of grad", "grad of scan of checkpoint", "grad of vmap"):
        assert "erfc" in text(way), way
        assert ("lgamma" in text(way)) == (way != "value"), way
    assert "lgamma" not in text("jvp")


def test_compiled_once_for_equal_operations():
    calls = []

    @jax.jit
    def fn(x, y):
        calls.append(1)
        return jax.grad(lambda x: kernel(x, y).sum())(x)

    fn(X, Y), fn(Y, X)
    assert len(calls) == 1 and hash(Product(2)) == hash(Product(2))
