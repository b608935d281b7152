"""Truncation by hand-made distributions, and against transformers' processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.autoregressive import truncation as cut

P = jnp.log(jnp.array([0.5, 0.2, 0.2, 0.1]))


def kept(logits):
    return np.isfinite(np.asarray(logits)).tolist()


def test_cuts_by_hand():
    # Entropy 1.2206; |information - entropy| is .527, .389, .389, 1.082.
    assert kept(cut.typical(P, 0.4)) == [False, True, True, False]
    assert kept(cut.typical(P, 0.41)) == [True, True, True, False]
    assert kept(cut.nucleus(P, 0.4)) == [True, False, False, False]
    assert kept(cut.nucleus(P, 0.5)) == [True, False, False, False]
    assert kept(cut.nucleus(P, 0.51)) == [True, True, True, False]  # equals stay together
    assert kept(cut.top_k(P, 1)) == [True, False, False, False]
    assert kept(cut.top_k(P, 4)) == [True] * 4
    np.testing.assert_allclose(jax.nn.softmax(cut.typical(P, 0.4)), [0, 0.5, 0.5, 0], atol=1e-6)
    flat = jax.nn.softmax(cut.scale(P, 2.0))
    np.testing.assert_allclose(flat, np.sqrt([0.5, 0.2, 0.2, 0.1]) / 1.9178, rtol=2e-4)


@pytest.mark.parametrize("mass", [0.1, 0.5, 1.0])
def test_uniform_logits_are_never_cut_and_a_mass_of_one_cuts_nothing(mass):
    uniform = jnp.full((2, 5), 3.0)
    for f in (cut.typical, cut.nucleus):
        np.testing.assert_array_equal(f(uniform, mass), uniform)
        np.testing.assert_array_equal(f(P, 1.0), P)


def test_after_another_cut_nothing_is_nan_and_nothing_comes_back():
    first = cut.top_k(P, 3)
    for f in (cut.typical, cut.nucleus):
        out = f(first, 0.9)
        assert not jnp.isnan(out).any() and not kept(out)[3]


@pytest.mark.parity
def test_as_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32) * 2
    for ours, theirs in (
        (lambda x: cut.typical(x, 0.6), transformers.TypicalLogitsWarper(mass=0.6)),
        (lambda x: cut.nucleus(x, 0.7), transformers.TopPLogitsWarper(top_p=0.7)),
        (lambda x: cut.top_k(x, 7), transformers.TopKLogitsWarper(top_k=7)),
        (lambda x: cut.scale(x, 0.7), transformers.TemperatureLogitsWarper(0.7)),
    ):
        want = theirs(None, torch.tensor(logits)).numpy()
        np.testing.assert_allclose(ours(jnp.asarray(logits)), want, rtol=1e-6)


def test_bad_options_name_themselves():
    good = dict(temperature=1.0, top_k=0, top_p=1.0, typical=1.0)
    bad = [("temperature", 0.0), ("temperature", float("nan")), ("top_k", -1), ("top_k", 5)]
    for name, value in [*bad, ("top_p", 0.0), ("top_p", 1.1), ("typical", 0.0)]:
        with pytest.raises(UsageError, match=f"sample.{name}"):
            cut.truncation(4, **{**good, name: value})
    np.testing.assert_array_equal(cut.truncation(4, **good)(P), P)
    once = cut.truncation(4, **{**good, "top_k": 2, "top_p": 0.5})(P)
    assert kept(once) == [True, False, False, False]
