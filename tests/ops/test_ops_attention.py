"""Structure, grouped queries and partial attention, against float64 numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.ops import BlockCausal, Causal, Prefix, attention, attention_with_lse, merge
from jaxgen.ops.attention import PLAIN
from jaxgen.ops.masks import dense
from jaxgen.ops.partial import EMPTY
from tests.exact_attention import MASKS, error, exact, table


def arrays(b=2, h=4, g=2, n=13, m=17, d=8, e=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, h, n, d), (b, g, m, d), (b, g, m, e)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_structure_and_grouped_queries(name, mask, groups):
    q, k, v = arrays(g=groups)
    place = dict(row=4, column=2, keys=15)
    out = attention(q, k, v, scale=0.3, mask=mask, implementation=name, **place)
    want, _ = exact(q, k, v, 0.3, table(mask, 13, 17, **place))
    assert error(out, want) < 1e-6


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_parts_merge_to_the_whole(mask):
    """Keys in three parts, the last padded: out, log-sum-exp and gradients as of all at once."""
    q, k, v = arrays(n=16, m=16)
    bounds = [(0, 5, 5), (5, 11, 6), (11, 16, 5)]

    def parts(q, k, v, row):
        found = None
        for begin, end, keys in bounds:
            pad = ((0, 0), (0, 0), (0, 6 - (end - begin)), (0, 0))
            one = attention_with_lse(
                q, jnp.pad(k[:, :, begin:end], pad, constant_values=9.0),
                jnp.pad(v[:, :, begin:end], pad, constant_values=9.0),
                scale=0.3, mask=mask, row=row, column=begin, keys=keys,
            )  # fmt: skip
            found = one if found is None else merge(found, one)
        return found

    out, lse = jax.jit(parts)(q[:, :, 7:], k, v, jnp.int32(7))  # the row is traced
    want, want_lse = exact(q[:, :, 7:], k, v, 0.3, table(mask, 9, 16, row=7))
    assert error(out, want) < 1e-6 and error(lse, want_lse) < 1e-6
    whole = lambda q, k, v, row: attention_with_lse(q, k, v, scale=0.3, mask=mask)

    def loss(fn):
        wave = lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        return lambda *a: sum((wave(x) * x).sum() for x in fn(*a, 0))

    for found, right in zip(
        jax.grad(loss(parts), (0, 1, 2))(q, k, v),
        jax.grad(loss(whole), (0, 1, 2))(q, k, v),
        strict=True,
    ):
        assert error(found, right) < 2e-6


def test_a_row_that_sees_nothing_is_zero_and_its_lse_finite():
    q, k, v = arrays()
    place = dict(mask=Causal(), column=3)  # rows 0 to 2 come before all keys
    out, lse = attention_with_lse(q, k, v, scale=0.3, **place)
    assert (out[:, :, :3] == 0).all() and (lse[:, :, :3] == EMPTY).all()
    grads = jax.grad(lambda *a: sum(x.sum() for x in attention_with_lse(*a, scale=0.3, **place)))
    assert jnp.isfinite(grads(q, k, v)).all()
    both, top = merge((out, lse), attention_with_lse(q, k, v, scale=0.3))
    np.testing.assert_allclose(both[:, :, :3], attention(q, k, v, scale=0.3)[:, :, :3], atol=1e-6)
    for name in PLAIN:
        found = attention(q, k, v, scale=0.3, implementation=name, **place)
        assert (found[:, :, :3] == 0).all()


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masks_are_what_they_say_and_never_fall(mask):
    found = dense(mask, 23, 29, jnp.asarray([2, 1, 27]))
    np.testing.assert_array_equal(found, table(mask, 23, 29, row=2, column=1, keys=27))
    rows, columns = jnp.arange(23)[:, None], jnp.arange(29)
    np.testing.assert_array_equal(rows >= mask.first(columns), table(mask, 23, 29))
    assert (jnp.diff(mask.last(jnp.arange(40))) >= 0).all()
    assert hash(mask) == hash(type(mask)(**vars(mask)))


def test_wrong_input():
    q, k, v = arrays()
    with pytest.raises(UsageError, match=r"shapes of q, k, v"):
        attention(q, k[:, :1].repeat(3, 1), v[:, :1].repeat(3, 1), scale=1.0)
    with pytest.raises(UsageError, match="an array, with row"):
        attention(q, k, v, scale=1.0, mask=jnp.ones((13, 17), bool), row=1)
    with pytest.raises(UsageError, match=r"Prefix.length: got -1"):
        Prefix(-1)
    with pytest.raises(UsageError, match=r"BlockCausal.size: got 0"):
        BlockCausal(0)
