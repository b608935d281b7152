"""Strategies give what they say, and only they need hypothesis."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import find, given, settings

from jaxgen.testing import strategies

quick = settings(max_examples=50, deadline=None)


@quick
@given(strategies.shapes(2, 3, 1, 5), strategies.dtypes(), strategies.keys())
def test_shapes_dtypes_and_keys_make_arrays(shape, dtype, key):
    assert np.zeros(shape, dtype).shape == shape and jnp.issubdtype(dtype, jnp.floating)
    assert 2 <= len(shape) <= 3 and min(shape) >= 1 and max(shape) <= 5
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()


@quick
@given(strategies.times(), strategies.times(ends=False), strategies.weights(-0.5, 3.0))
def test_times_and_weights_are_float32_numbers_in_their_range(closed, inside, weight):
    assert 0 <= closed <= 1 and 0 < inside < 1 and -0.5 <= weight <= 3
    assert all(float(np.float32(a)) == a for a in (closed, inside, weight))


@quick
@given(strategies.labels(3), strategies.labels(3, size=4), strategies.labels(3, null=False))
def test_labels_are_classes_and_no_label(some, four, classes):
    assert some.dtype == np.int32 and 1 <= len(some) <= 8 and four.shape == (4,)
    assert some.min() >= 0 and some.max() <= 3 and classes.max() < 3


@pytest.mark.parametrize(
    ("strategy", "special"),
    [
        (strategies.times(), 0.0),
        (strategies.times(), 1.0),
        (strategies.weights(), 0.0),
        (strategies.weights(), 1.0),
        (strategies.labels(5, size=1), 5),
    ],
    ids=str,
)
def test_the_special_cases_come(strategy, special):
    assert find(strategy, lambda value: np.all(value == special)) == special


WITHOUT = """
import sys
sys.modules["hypothesis"] = None
from jaxgen import testing
testing.check_metric(lambda x, y: x.mean() - y.mean(), *[__import__("numpy").eye(3)] * 2)
testing.strategies.keys()
"""


def test_without_hypothesis_only_strategies_fail_and_say_what_to_install():

    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.strip().endswith(
        "jaxgen.testing.strategies: got 'an environment without hypothesis'; allowed: one with it. "
        'pip install "jaxgen[testing]"'
    )
