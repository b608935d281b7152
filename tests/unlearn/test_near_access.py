"""Near access: what passes, what stands in where nothing does, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import CLASSES, REFERENCE, SPEC, Trained, table
from jaxgen.errors import UsageError
from jaxgen.method import with_frozen
from jaxgen.unlearn.near_access import near_access

KEYS, LABELS = jax.random.split(jax.random.key(1), 3000), jnp.arange(3000) % CLASSES
OWN = {"net": {"logits": jnp.asarray(np.random.default_rng(3).normal(0, 2, REFERENCE.shape))}}


def drawn(**options):
    base = table(1e-2)
    method = near_access(base, spec=SPEC, networks={"safe": Trained(base)}, **options)
    return method, np.asarray(method.sampler().fn(with_frozen(method, OWN), KEYS, LABELS))[:, 0]


def excess(x):
    p = np.asarray(jax.nn.log_softmax(OWN["net"]["logits"]))
    return (p - np.log(REFERENCE))[np.asarray(LABELS), x]


def test_without_a_limit_it_is_the_models_own_first_draw():
    method, x = drawn(k=1e9, tries=3)
    keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, 0)
    np.testing.assert_array_equal(x, table(1e-2).sampler().fn(OWN, keys, LABELS)[:, 0])
    assert method.sampler().calls == 4


def test_with_enough_tries_nothing_is_over_the_limit():
    """What is over it with one try is the safe model's, in its place."""
    _, one = drawn(k=0.5, tries=1)
    _, many = drawn(k=0.5, tries=40)
    assert (excess(many) > 0.5).mean() < 0.02 < (excess(one) > 0.5).mean()


def test_where_nothing_passes_it_is_the_safe_model():
    _, x = drawn(k=-1e9, tries=2)
    for label in range(CLASSES):
        share = np.bincount(x[np.asarray(LABELS) == label], minlength=10) / 1000
        # Three standard errors of a share.
        assert np.abs(share - REFERENCE[label]).max() < 3 * 0.5 / 1000**0.5


def test_the_nearest_of_several_networks_counts():
    """The limit holds against each: with the model itself beside, no network is nearer than it."""
    base = table(1e-2)
    itself = Trained(base)
    itself.params = OWN
    both = near_access(base, spec=SPEC, networks={"safe": Trained(base), "own": itself}, k=0.5)
    x = np.asarray(both.sampler().fn(with_frozen(both, OWN), KEYS, LABELS))[:, 0]
    np.testing.assert_array_equal(x, drawn(k=0.5)[1])


def test_bad_input_is_named():
    base = table(1e-2)
    bound = dataclasses.replace(base, likelihood=dataclasses.replace(base.likelihood, exact=False))
    cases = [
        (dict(networks={}), base, "one safe model"),
        (dict(tries=0), base, "tries >= 1"),
        (dict(), bound, "method, without exact"),
        (dict(networks={"safe": Trained(bound)}), base, "safe, without exact"),
    ]
    for options, method, words in cases:
        with pytest.raises(UsageError, match=words):
            near_access(method, **{"spec": SPEC, "networks": {"safe": Trained(base)}} | options)
