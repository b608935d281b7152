"""Attention: every implementation against float64 numpy, masked and biased."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.ops.attention import PLAIN, attention


def exact(q, k, v, scale, mask=None, bias=None):
    scores = np.einsum("bhnd,bhmd->bhnm", q, k) * scale
    if bias is not None:
        scores = scores + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    if mask is not None:
        weights = weights * mask
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bhmd->bhnd", weights / np.where(total == 0, 1, total), v)


def arrays(n=5, m=7, d=4, e=6):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 3, *s)) for s in ((n, d), (m, d), (m, e))]


@pytest.mark.parametrize("dtype,tolerance", [("float32", 2e-6), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_attention_equals_the_formula(name, biased, masked, dtype, tolerance):
    q, k, v = arrays()
    rng = np.random.default_rng(1)
    mask = rng.random((2, 1, 5, 7)) > 0.4 if masked else None
    if masked:
        mask[0, 0, 2] = False  # a row that may attend to nothing
    bias = rng.normal(size=(1, 3, 5, 7)) if biased else None
    given = [jnp.asarray(a, dtype) for a in (q, k, v)]
    extra = {"mask": mask, "bias": None if bias is None else jnp.asarray(bias, jnp.float32)}
    out = attention(*given, scale=0.3, implementation=name, **extra)
    assert out.dtype == jnp.dtype(dtype)
    rounded = [np.asarray(a, np.float64) for a in given]
    want = exact(*rounded, 0.3, mask, bias)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(4, 4, 256, 72), (2, 2, 1024, 64)])
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "reference"])
def test_bfloat16_is_within_a_hundredth_at_the_networks_sizes(name, shape):
    """In norm, forward and the three gradients, against float32 on the same rounded inputs."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, out = (jax.random.normal(key, shape).astype(jnp.bfloat16) for key in keys)

    def both(implementation, *given):
        def fn(q, k, v):
            return attention(q, k, v, scale=shape[-1] ** -0.5, implementation=implementation)

        value, back = jax.vjp(fn, *given)
        return value, *back(out.astype(value.dtype))

    exact = both("reference", *(a.astype(jnp.float32) for a in (q, k, v)))
    for found, want in zip(both(name, q, k, v), exact, strict=True):
        error = jnp.linalg.norm((found.astype(jnp.float32) - want).ravel())
        assert float(error / jnp.linalg.norm(want.ravel())) < 1e-2


@pytest.mark.parametrize("name", PLAIN)
def test_poisoned_values_behind_the_mask_do_not_leak(name):
    q, k, v = (jnp.asarray(a, jnp.float32) for a in arrays())
    mask = jnp.arange(7) < 5
    want = attention(q, k[:, :, :5], v[:, :, :5], scale=0.5, implementation=name)
    got = attention(q, k.at[:, :, 5:].set(1e30), v, scale=0.5, mask=mask, implementation=name)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_huge_scores_stay_finite_and_differentiable(name):
    q, k, v = (jnp.asarray(a, jnp.float32) for a in arrays())
    loss = lambda q: attention(q, k, v, scale=1e4, implementation=name).sum()
    value, grad = jax.value_and_grad(loss)(q)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()


def test_scale_has_no_default_and_the_implementation_must_exist():
    q, k, v = (jnp.asarray(a, jnp.float32) for a in arrays())
    with pytest.raises(TypeError, match="scale"):
        attention(q, k, v)
    with pytest.raises(UsageError, match=r"got 'xIa'.*xla"):
        attention(q, k, v, scale=1.0, implementation="xIa")
