"""Laws of a kernel: values and derivatives of a plain reference in float64, nothing unwritten.

Kernels of `jaxgen.ops` run on any platform within `jaxgen.ops.interpreted`, your own with
`pallas_call(..., interpret=True)`: either way, what nobody wrote is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.naming import law

Kernel = Callable[..., jax.Array]

FORWARD = "a kernel's values are the reference's"
GRADIENT = "a kernel's gradients are the reference's"
TANGENT = "a kernel's jvp is the reference's"
WRITTEN = "a kernel writes all of its output"
UNSEEN = "what a kernel must not see does not matter"


def rounding(dtype: Any) -> float:
    """The error in norm, relative, that a careful kernel of a dtype may make.

    float32 and wider: 8 units of rounding, for sums in another order and for exponentials.
    Narrower: 2 units, for the output and for what is rounded on the way (sums are kept wide).
    """
    eps = float(jnp.finfo(dtype).eps)
    return (8 if jnp.finfo(dtype).bits >= 32 else 2) * eps


def check_kernel(
    kernel: Kernel, reference: Kernel, args: Sequence[jax.Array], *, tolerance: float | None = None
) -> None:
    """A kernel's values, gradients and jvp; kernel(*args) and reference(*args) -> one array.

    args: floating-point arrays, all of which it is differentiated by. reference: the formula in
    plain jax.numpy; it is given the same numbers in float64. tolerance: in norm, relative; by
    default `rounding` of the output's dtype, twice that for derivatives, which have twice the
    operations. A kernel with no jvp (`jax.custom_vjp`): `check_forward` and `check_gradient`.
    """
    check_forward(kernel, reference, args, tolerance=tolerance)
    check_gradient(kernel, reference, args, tolerance=tolerance)
    check_jvp(kernel, reference, args, tolerance=tolerance)


def check_forward(
    kernel: Kernel, reference: Kernel, args: Sequence[jax.Array], *, tolerance: float | None = None
) -> None:
    """Every element of the output is written, and its values are the reference's."""
    out = jax.jit(kernel)(*args)
    want = _wide(reference, args)
    with law(WRITTEN):
        assert out.shape == want.shape, f"shape {out.shape} in place of {want.shape}"
        lost = int((~jnp.isfinite(out)).sum())
        assert not lost, f"{lost} of {out.size} elements are not finite"
    with law(FORWARD):
        _near(out, want, tolerance, out.dtype, "the values")


def check_gradient(
    kernel: Kernel, reference: Kernel, args: Sequence[jax.Array], *, tolerance: float | None = None
) -> None:
    """The gradients by each argument, along a random direction of the output."""
    shape = jax.eval_shape(kernel, *args)
    along = jax.random.normal(jax.random.key(0), shape.shape).astype(shape.dtype)

    def back(fn: Kernel) -> Callable[..., Any]:
        def gradients(along: jax.Array, *args: jax.Array) -> Any:
            value, pull = jax.vjp(fn, *args)
            return pull(along.astype(value.dtype))

        return gradients

    actual = jax.jit(back(kernel))(along, *args)
    want = _wide(back(reference), (along, *args))
    with law(GRADIENT):
        for number, (mine, right) in enumerate(zip(actual, want, strict=True)):
            _near(mine, right, tolerance, shape.dtype, f"by argument {number}", 2)


def check_jvp(
    kernel: Kernel, reference: Kernel, args: Sequence[jax.Array], *, tolerance: float | None = None
) -> None:
    """The tangent of the output along a random direction of all arguments."""
    keys = jax.random.split(jax.random.key(1), len(args))
    along = [jax.random.normal(k, a.shape).astype(a.dtype) for k, a in zip(keys, args, strict=True)]

    def tangent(fn: Kernel) -> Callable[..., Any]:
        return lambda *both: jax.jvp(fn, both[: len(args)], both[len(args) :])[1]

    tangent_out = jax.jit(tangent(kernel))(*args, *along)
    want = _wide(tangent(reference), (*args, *along))
    with law(TANGENT):
        _near(tangent_out, want, tolerance, tangent_out.dtype, "the tangent", 2)


def check_unseen(kernel: Kernel, args: Sequence[jax.Array], poisoned: Sequence[jax.Array]) -> None:
    """The same bits where arguments differ in what the kernel must not see.

    poisoned: args with large numbers (1e30) behind the mask, or past the valid keys.
    """
    run = jax.jit(kernel)
    with law(UNSEEN):
        np.testing.assert_array_equal(run(*poisoned), run(*args))


def _wide(fn: Callable[..., Any], args: Sequence[jax.Array]) -> Any:
    """fn of the same numbers in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in args]
        return jax.tree.map(np.asarray, jax.jit(fn)(*wide))


def _near(
    actual: Any, want: Any, tolerance: float | None, dtype: Any, what: str, room: float = 1
) -> None:
    actual, want = np.asarray(actual, np.float64), np.asarray(want, np.float64)
    assert actual.shape == want.shape, f"{what}: shape {actual.shape} in place of {want.shape}"
    bound = room * (rounding(dtype) if tolerance is None else tolerance)
    error = np.linalg.norm(actual - want) / max(np.linalg.norm(want), np.finfo(np.float64).tiny)
    assert error <= bound, f"{what} are off by {error:.2g} of their norm; allowed: {bound:.2g}"
