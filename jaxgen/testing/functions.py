"""Laws of any function that is to be compiled: one program, and the same values however it runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.naming import law

PyTree = Any

ONCE = "a second call does not compile"
SAME = "the same under jit, under pmap, on the device and off it"
DERIVATIVES = "derivatives are the limits of differences"

ROUNDING = 1e-5
"""Room for float32: sums of up to 10,000 numbers in another order, 6e-8 x sqrt(10,000)."""

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For laws of large programs: compiling is what takes the time, and unoptimised code computes the
same numbers but for rounding."""

_number = itertools.count()


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], int]]:
    """Counts the programs that JAX compiles inside the block; yields a function that says so."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(seen)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@law(ONCE)
def check_compiles_once(fn: Callable[..., Any], *args: Any, again: tuple[Any, ...] = ()) -> None:
    """A jitted function's second call does not compile again.

    again: the second call's arguments, of the same shapes and dtypes; by default the same ones.
    """
    jax.block_until_ready(fn(*args))
    with count_compilations() as compiled:
        jax.block_until_ready(fn(*(again or args)))
    assert compiled() == 0, f"the second call compiled {compiled()} programs"


def traced_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, to be jitted, which raises AssertionError when it is traced a second time."""

    def traced(*args: Any) -> Any:
        return fn(*args)

    # chex counts by a function's name and source, over all of them that look alike.
    traced.__name__ = f"traced_{next(_number)}"
    return chex.assert_max_traces(traced, n=1)


@law(SAME)
def check_variants(
    fn: Callable[..., PyTree], *args: PyTree, rtol: float = ROUNDING, atol: float = ROUNDING
) -> None:
    """Every chex variant of fn (`chex.all_variants`) gives the same tree of arrays.

    args: trees of arrays, which pmap copies to every device. Without jit, fn runs operation by
    operation.
    """
    outputs: dict[str, PyTree] = {}

    class Variants(chex.TestCase):
        @chex.all_variants
        def test_variant(self: Any) -> None:
            out = self.variant(fn)(*args)
            outputs[self.variant.type.name.lower()] = jax.tree.map(plain, out)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Variants).run(result)
    problems = [text.strip().splitlines()[-1] for _, text in result.errors + result.failures]
    assert not problems, f"a variant raised: {problems[0]}"
    expected = outputs.pop("without_jit")
    for name, out in outputs.items():
        try:
            close(out, expected, rtol=rtol, atol=atol)
        except AssertionError as error:
            raise AssertionError(f"{name} and without_jit: {error}") from error


@law(DERIVATIVES)
def check_derivative(fn: Callable[..., Any], *args: Any, tolerance: float = 1e-2) -> None:
    """First derivatives of fn, forward and reverse, against central differences.

    tolerance: what float32 leaves of a difference quotient; run it under `jax.enable_x64` for less.
    """
    chex.assert_numerical_grads(fn, args, order=1, atol=tolerance, rtol=tolerance)


def close(actual: PyTree, expected: PyTree, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Two trees of arrays are equal, or as close as allowed; keys are compared by their bits."""
    actual, expected = (jax.tree.map(plain, tree) for tree in (actual, expected))
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


def same_bits(actual: PyTree, expected: PyTree) -> None:
    """Two trees have equal shapes, dtypes and bits; NaN is NaN."""
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(actual),
        jax.tree_util.tree_leaves_with_path(expected),
        strict=True,
    ):
        a, b = plain(a), plain(b)
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, a.shape, a.dtype, b.shape, b.dtype)
        np.testing.assert_array_equal(a, b, err_msg=name)


def plain(a: Any) -> np.ndarray:
    """An array on the host; typed keys as their bits."""
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    return np.asarray(a)
